"""The pictogram data set: open icon sets with human-made names, packed into webdataset shards of SVG.

Each icon set is an npm package ``@iconify-json/<set>`` (``icons.json``: SVG bodies by name; ``info.json``:
licence). Names, keywords and groups come from the Unicode CLDR by way of the npm package ``emojibase-data``.
Only icons whose name is the CLDR label of an emoji are kept, which leaves out skin tones, letters, code
points and brand marks by itself.

A shard holds, per picture, ``<key>.svg`` and ``<key>.json`` (concept, style, group, keywords, held_out). SVG
keeps the data small enough to carry anywhere and renders exactly at the size that each stage trains at.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..writing import staging_folder

logger = logging.getLogger(__name__)

NAMES_PACKAGE = "emojibase-data@17.0.0"
ICON_PACKAGES: dict[str, str] = {
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
}
GROUPS: dict[str, int] = {
    "smileys": 0,
    "people": 1,
    "animals": 3,
    "food": 4,
    "travel": 5,
    "activities": 6,
    "objects": 7,
    "symbols": 8,
}
HELD_OUT_FRACTION = 0.05
SHARD_BYTES = 15_000_000


@dataclass(frozen=True)
class Pictogram:
    """One picture of one concept in one style, as SVG text with its human-made names."""

    key: str
    concept: str
    style: str
    group: str
    keywords: tuple[str, ...]
    svg: str

    @property
    def held_out(self) -> bool:
        return is_held_out(self.key)


def is_held_out(key: str) -> bool:
    """Whether the (style, concept) pair ``key`` is kept out of training to measure composition.

    Decided by a hash of the key alone: stable when sets are added, the same on every machine.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_FRACTION


def download_packages(folder: Path, styles: Iterable[str]) -> None:
    """Put the npm packages that ``styles`` need into ``folder``, skipping those already there.

    Raises:
        ValueError: an unknown style, npm is not installed, or it could not bring a package.
    """
    styles = list(styles)
    require_known("style", styles, ICON_PACKAGES)
    npm = shutil.which("npm")
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in [("emojibase-data", NAMES_PACKAGE), *((s, ICON_PACKAGES[s]) for s in styles)]:
        target = folder / name
        if target.exists():
            continue
        if npm is None:
            raise ValueError(
                f"npm is needed to download the package {package}, and was not found. "
                f"Install Node.js, or unpack the package by hand into {target}"
            )
        with staging_folder(folder) as scratch:
            packed = subprocess.run(
                [npm, "pack", "--silent", package], cwd=scratch, capture_output=True, text=True, check=False
            )
            archives = list(scratch.glob("*.tgz"))
            if packed.returncode != 0 or not archives:
                reason = packed.stderr.strip() or packed.stdout.strip()
                raise ValueError(f"npm could not download {package}: {reason}")
            _unpack(archives[0], scratch)
            (scratch / "package").rename(target)
        logger.info("downloaded %s", package)


def _unpack(file: Path, folder: Path) -> None:
    """The files of an archive into a folder, and nothing outside of it."""
    with tarfile.open(file) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
            return
        # Before Python 3.10.12 and 3.11.4 (Debian 12 has 3.11.2) archives are not looked through for us.
        for member in archive.getmembers():
            if member.isreg() and (folder / member.name).resolve().is_relative_to(folder.resolve()):
                archive.extract(member, folder)


def read_pictograms(
    packages: Path, styles: Sequence[str] = tuple(ICON_PACKAGES), groups: Sequence[str] = tuple(GROUPS)
) -> Iterator[Pictogram]:
    """Every pictogram of the given styles and groups that the unpacked npm packages hold, in a fixed order.

    Raises:
        ValueError: an unknown style or group, named together with the known ones.
    """
    require_known("style", styles, ICON_PACKAGES)
    require_known("group", groups, GROUPS)
    names = _read_names(packages / "emojibase-data" / "en" / "data.json", groups)
    for style in styles:
        icons = json.loads((packages / style / "icons.json").read_text(encoding="utf-8"))
        for name in sorted(icons["icons"]):
            entry = names.get(_squash(name))
            if entry is None:
                continue
            concept, group, keywords = entry
            yield Pictogram(
                key=f"{style}/{_slug(concept)}",
                concept=concept,
                style=style,
                group=group,
                keywords=keywords,
                svg=_icon_svg(icons, name),
            )


def require_writer() -> None:
    """Raise ModuleNotFoundError where :func:`write_shards` lacks its package, before any work is done."""
    import webdataset  # noqa: F401


def write_shards(pictograms: Iterable[Pictogram], folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Pack pictograms into shards ``pictograms-NNNNNN.tar`` of about ``shard_bytes``; returns their number.

    The shards take the place of those that ``folder`` held before.
    """
    import webdataset  # an extra: only data building and training need it

    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with staging_folder(folder) as scratch:
        pattern = str(scratch / "pictograms-%06d.tar")
        with webdataset.ShardWriter(pattern, maxsize=shard_bytes, maxcount=10**9, verbose=0) as writer:
            for pictogram in pictograms:
                facts = asdict(pictogram) | {"held_out": pictogram.held_out}
                key, svg = facts.pop("key"), facts.pop("svg")
                writer.write({"__key__": key, "svg": svg.encode(), "json": json.dumps(facts).encode()})
                count += 1
        for old in folder.glob("pictograms-*.tar"):
            old.unlink()
        for shard in scratch.glob("*.tar"):
            shard.rename(folder / shard.name)
    return count


def read_shards(folder: Path) -> Iterator[Pictogram]:
    """The pictograms of a folder of shards, in the order in which they were written.

    Raises:
        ValueError: the folder holds no shards, or others than those of ``write_shards``.
    """
    import webdataset

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"no .tar shards in {folder}: build them with `unclip data pictograms -o {folder}`")
    try:
        # All processes of a run read all shards; which rows of a batch are whose is decided later.
        everything = {"nodesplitter": iter, "workersplitter": iter, "empty_check": False}
        for sample in webdataset.WebDataset(shards, shardshuffle=False, **everything):
            facts = json.loads(sample["json"])
            yield Pictogram(
                key=sample["__key__"],
                concept=facts["concept"],
                style=facts["style"],
                group=facts["group"],
                keywords=tuple(facts["keywords"]),
                svg=sample["svg"].decode(),
            )
    except (LookupError, TypeError, ValueError, OSError, tarfile.TarError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(
            f"{folder}: its shards are damaged, or not of pictograms ({reason}); build them again with "
            f"`unclip data pictograms -o {folder}`"
        ) from error


def require_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}")


def _read_names(path: Path, groups: Sequence[str]) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Squashed CLDR label → (concept, group, keywords)."""
    group_names = {GROUPS[group]: group for group in groups}
    names = {}
    for emoji in json.loads(path.read_text(encoding="utf-8")):
        group = group_names.get(emoji.get("group"))
        if group is not None:
            concept = re.sub(r"[“”‘’:.!*()]", "", emoji["label"].lower()).strip()
            tags = (tag.lower() for tag in emoji.get("tags", ()) if tag.isascii())
            keywords = tuple(tag for tag in tags if tag != concept)
            names[_squash(emoji["label"])] = (concept, group, keywords)
    return names


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _slug(concept: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", concept.lower()).strip("-")


def _icon_svg(icons: dict, name: str) -> str:
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
