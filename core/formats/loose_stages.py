"""Files of single stages in a folder that is no bundle, as GLIDE and LAION are published: what they are, and
by which command they become a bundle."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..folders import walk_once
from .detect import identify_all
from .files.source import open_weights
from .files.weight_source import WeightSource
from .layouts.diffusers_files import MODEL_INDEX, is_component, open_component
from .layouts.multilingual_clip import MULTILINGUAL_CLIP_LAYOUTS
from .native.checkpoints import BUNDLE_FILE
from .native.header import is_native, read_header

_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_INDEX, _SHARD = ".index.json", re.compile(r"-\d+-of-\d+\.\w+$")
_MOST = 100  # files that are opened: a folder of thousands of them is no model
_MANY = ("upsampler",)  # of which a bundle may have several


@dataclass(frozen=True)
class LooseStage:
    """A file, or the folder of a network in diffusers' layout.

    Attributes:
        kinds: what it holds, by the entries of a bundle; GLIDE's files hold two.
        space: id of its CLIP space; None for an upsampler that reads no captions, and an autoencoder.
    """

    path: Path
    kinds: tuple[str, ...]
    space: str | None


def loose_stages(folder: str | Path) -> list[LooseStage]:
    """The stages in a folder and below it that are known, sorted by path; those of bundles are left out."""
    found = []
    for number, path in enumerate(_candidates(Path(folder))):
        if number == _MOST:
            break
        try:
            source = open_component(path) if path.is_dir() else open_weights(path)
            found.append(LooseStage(path, *_kinds_and_space(source)))
        except (OSError, ValueError):
            continue  # whatever else may lie in a folder
    return found


def about_loose_stages(folder: str | Path, found: Sequence[LooseStage] = ()) -> str | None:
    """Why a folder is no bundle and how it becomes one, for people; None where it holds no stage.

    Args:
        found: its stages, where they are known already.
    """
    stages = found or loose_stages(folder)
    if not stages:
        return None
    listed = ", ".join(f"{each.path.relative_to(folder)} ({' and '.join(each.kinds)})" for each in stages)
    commands = conversions(stages)
    bundles = "a bundle" if len(commands) == 1 else f"{len(commands)} bundles, one for each CLIP space,"
    how = f" They become {bundles} by: {'; '.join(commands)}" if commands else ""
    return f"{folder}: has no {BUNDLE_FILE}; it holds files of single stages: {listed}.{how}"


def conversions(stages: Sequence[LooseStage]) -> list[str]:
    """The commands by which stages become bundles, one for each CLIP space. Of a kind the first counts."""
    groups: dict[str | None, list[LooseStage]] = {}
    for stage in sorted(stages, key=lambda each: each.space is None):
        if stage.kinds == ("autoencoder",):
            continue  # it comes with its decoder
        # What has no space fits the first one.
        members = groups.setdefault(stage.space or next(iter(groups), None), [])
        taken = {kind for each in members for kind in each.kinds} - set(_MANY)
        if taken.isdisjoint(stage.kinds):
            members.append(stage)
    return [
        shlex.join(
            ["unclip", "convert", *(str(each.path) for each in members), "-o", _name(members[0], len(groups))]
        )
        for members in groups.values()
    ]


def _name(first: LooseStage, bundles: int) -> str:
    return "NAME" if bundles == 1 else f"NAME-{first.path.stem}"


def _candidates(folder: Path) -> Iterator[Path]:
    for here, folders, files in walk_once(folder):
        if BUNDLE_FILE in files or MODEL_INDEX in files:
            folders.clear()
        elif is_component(here):
            folders.clear()
            yield here
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]
            whole = [name for name in files if name.endswith(_WEIGHTS) and not _SHARD.search(name)]
            indices = [name for name in files if name.endswith(_INDEX)]
            yield from (here / name for name in sorted(whole + indices))


def _kinds_and_space(source: WeightSource) -> tuple[tuple[str, ...], str | None]:
    if is_native(source):
        header = read_header(source.path)
        kind: str = header.stage
        if kind == "prior" and header.diffusion is None:
            kind = "ar_prior"
        if header.network == "multilingual_clip":
            kind = "decoder_text"
        return (kind,), None if header.space is None else header.space.id
    layouts = identify_all(source)
    kinds = ("decoder_text" if each in MULTILINGUAL_CLIP_LAYOUTS else each.stage for each in layouts)
    space = next((each.space(source) for each in layouts if each.space is not None), None)
    return tuple(kinds), space
