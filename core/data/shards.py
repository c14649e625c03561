"""Webdataset shards of pictures and captions, as img2dataset writes them, read in any order.

A shard is a tar file in which files that share a name up to its first dot belong together: ``000.jpg``,
``000.txt``, ``000.json``. Its members lie uncompressed at known places: any of them can be read at once.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from ..text_files import decoded
from ..writing import written_whole
from .decoding import ENDINGS
from .sources import Captioned, Captions, caption_problem, field_of, text_of

logger = logging.getLogger(__name__)

MOST_SHARDS = 1_000_000
_TEXT, _FACTS = "txt", "json"
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})")


@dataclass(frozen=True)
class _Member:
    """Where in a shard a file lies."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Sample:
    key: str
    picture: _Member
    ending: str
    caption: _Member | None
    is_json: bool


class ShardSource:
    """The pictures of shards, in the order of the shards and in them."""

    def __init__(
        self,
        shards: str,
        caption_field: str | None = None,
        cache: Path | None = None,
        allow_pipe: bool = False,
        captions: Captions = "needed",
    ) -> None:
        """Args:
        shards: local paths, globs, brace ranges, URLs, ``pipe:`` commands; several with ``::`` between.
        caption_field: key of the captions in NAME.json, whatever NAME.txt says; None for NAME.txt, or without
            one ``text`` or ``caption`` in NAME.json.
        cache: folder where shards from URLs are kept; one of the user's if None.
        allow_pipe: run the commands of ``pipe:``.

        Raises:
            ValueError: no such shards, no pictures with captions in them, or a command that is not allowed.
        """
        self._field, self._captions = caption_field, captions
        endings = () if captions == "unread" else (_TEXT, _FACTS) if caption_field is None else (_FACTS,)
        self._paths: list[Path] = []
        self._samples: list[list[_Sample]] = []
        missing: list[str] = []
        for name in shard_names(shards):
            path = local_shard(name, cache or default_cache(), allow_pipe)
            samples, without = _index(path, captions == "needed", endings)
            missing += without
            if samples:
                self._paths.append(path)
                self._samples.append(samples)
        self.missing = tuple(missing)
        self.groups = tuple(len(samples) for samples in self._samples)
        self._ends = list(itertools.accumulate(self.groups))
        if not self._samples:
            beside = "NAME.txt or NAME.json" if caption_field is None else f"{caption_field!r} in NAME.json"
            names = f"NAME.{'/'.join(ENDINGS)}"
            raise ValueError(
                f"data.path: {shards} holds no pictures with captions ({len(missing)} without); expected "
                f"{names} with {beside}"
                if captions == "needed"
                else f"data.path: {shards} holds no pictures; expected {names}"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        return self._place(index)[1].key

    def read(self, index: int) -> Captioned:
        path, sample = self._place(index)
        with path.open("rb") as file:
            picture = _bytes_of(file, sample.picture)
            text = b"" if sample.caption is None else _bytes_of(file, sample.caption)
        value: object = decoded(text, "its caption")
        if sample.is_json and text:
            value = self._in_json(text, f"{path.name}, {sample.key}.json")
        caption = text_of(value)
        if caption is None and self._captions == "needed":
            raise ValueError(caption_problem(value))
        return Captioned(picture, caption or "", sample.ending)

    def _in_json(self, text: bytes, where: str) -> object:
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("its json is no table")
        names = ("text", "caption") if self._field is None else (self._field,)
        if self._captions == "optional" and not any(name in facts for name in names):
            return None
        return field_of(facts, self._field, where)

    def _place(self, index: int) -> tuple[Path, _Sample]:
        shard = bisect.bisect_right(self._ends, index)
        return self._paths[shard], self._samples[shard][index - (self._ends[shard] - self.groups[shard])]


def shard_names(shards: str) -> list[str]:
    """The paths and URLs that a text with globs and brace ranges stands for.

    Raises:
        ValueError: nothing is there, or too many are meant.
    """
    from braceexpand import UnbalancedBracesError, braceexpand  # comes with webdataset

    names: list[str] = []
    for word in [shards] if Path(shards).exists() or _scheme(shards) == "pipe" else shards.split("::"):
        few = all(int(last) - int(first) < MOST_SHARDS for first, last in _RANGE.findall(word))
        try:
            # A command is taken as it is: it has its own use for braces.
            expanded = [word] if _scheme(word) == "pipe" else list(_first(braceexpand(word) if few else ()))
        except UnbalancedBracesError as error:
            raise ValueError(f"data.path: {word}: {error}") from error
        if not few or len(names) + len(expanded) > MOST_SHARDS:
            raise ValueError(f"data.path: {word} means more than {MOST_SHARDS:,} shards")
        for name in expanded:
            names += [name] if _scheme(name) else _local(name)
    return names


def _first(names: Iterable[str]) -> Iterator[str]:
    return itertools.islice(names, MOST_SHARDS + 1)


def _local(name: str) -> list[str]:
    if Path(name).is_dir():
        found = sorted(str(file) for file in Path(name).glob("*.tar"))
    elif any(letter in name for letter in "*?["):
        anchor = Path(Path(name).anchor)
        pattern = str(Path(name).relative_to(anchor)) if anchor.anchor else name
        found = sorted(str(file) for file in anchor.glob(pattern))
    else:
        found = [name]
    if not found or not Path(found[0]).is_file():
        raise ValueError(f"data.path: there are no shards {name}")
    return found


def _scheme(name: str) -> str:
    scheme, colon, _ = name.partition(":")
    return scheme if colon and len(scheme) > 1 else ""  # C:\ is a disk


def default_cache() -> Path:
    """Where shards from elsewhere are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "unclip" / "shards"


def local_shard(name: str, cache: Path, allow_pipe: bool) -> Path:
    """The file of a shard, fetched into ``cache`` where it lies elsewhere.

    Raises:
        ValueError: a kind of address that is not read, or a command that is not allowed.
        OSError: it cannot be fetched.
    """
    scheme = _scheme(name)
    if scheme in ("", "file"):
        return Path(name.removeprefix("file://").removeprefix("file:"))
    if scheme == "pipe" and not allow_pipe:
        raise ValueError(
            f"data.path: {name!r} is a command; a config must not run any unless you allow it: --allow-pipe"
        )
    if scheme not in ("http", "https", "pipe"):
        raise ValueError(
            f"data.path: {name}: shards are read from local paths, http and https; for {scheme} write "
            f"pipe: and the command that prints the shard, and allow it with --allow-pipe"
        )
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.tar"
    if not kept.exists():
        with _one_at_a_time(kept):
            if not kept.exists():  # or else another process has fetched it meanwhile
                with written_whole(kept) as unfinished, unfinished.open("wb") as file:
                    _fetch(name, scheme, file)
    return kept


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Has other processes of this machine that want ``path`` wait, where the system has locks of files."""
    try:
        import fcntl
    except ImportError:  # Windows: each makes its own, and the last one stays
        yield
        return
    lock = path.with_suffix(".lock")
    with lock.open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _fetch(name: str, scheme: str, file: BinaryIO) -> None:
    if scheme == "pipe":
        ran = subprocess.run(name.removeprefix("pipe:"), shell=True, stdout=file, check=False)
        if ran.returncode:
            raise OSError(f"{name}: the command ended with {ran.returncode}")
        return
    try:
        with urllib.request.urlopen(name, timeout=60) as answer:
            shutil.copyfileobj(answer, file)
            length = answer.headers["Content-Length"]
        if length is not None and file.tell() != int(length):
            raise OSError(f"{file.tell()} bytes came of {length}; start again")
    except (OSError, HTTPException) as error:
        raise OSError(f"{name}: cannot be fetched: {error}") from error


def _index(path: Path, needed: bool, captions: tuple[str, ...]) -> tuple[list[_Sample], list[str]]:
    """The samples of a shard, and the keys of those without a picture or a caption.

    Args:
        needed: the captions are.
        captions: endings of the files that may hold the captions, the first that is there does.
    """
    samples, missing = [], []
    for key, members in _samples(path):
        ending = next((ending for ending in ENDINGS if ending in members), None)
        told = next((each for each in captions if each in members), None)
        if ending is None or (told is None and needed):
            missing.append(f"{path.name}/{key}")
        else:
            caption = None if told is None else members[told]
            samples.append(_Sample(key, members[ending], ending, caption, told == _FACTS))
    return samples, missing


def _samples(path: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """The files of each sample by their endings; a shard that is cut short has those before the cut."""
    key, members, end = "", {}, 0
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile() or member.offset_data + member.size > size:
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                here = f"{folder}/{stem}" if folder else stem
                if here != key:
                    if members:
                        yield key, members
                    key, members = here, {}
                members[ending.lower()] = _Member(member.offset_data, member.size)
            end = archive.offset
    except tarfile.ReadError as error:
        if not members:
            raise ValueError(f"{path} is no tar file: {error}") from error
    if members:
        yield key, members
    if not _ends_at(path, end):
        logger.warning(
            "%s is cut short or damaged: its pictures are read up to %s, and a whole one may hold more; "
            "fetch or pack it again",
            path,
            key,
        )


def _ends_at(path: Path, offset: int) -> bool:
    """Whether a tar file has its end there: a block of zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _bytes_of(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)
