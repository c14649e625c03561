"""Webdataset shards written: the same bytes for the same files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..writing import written_whole


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file as a member without a time or an owner."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_shard(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """A shard of files, in their order, whole or not at all."""
    with written_whole(path) as unfinished, tarfile.open(unfinished, "w") as archive:
        for name, content in files:
            add_file(archive, name, content)


def names_in_shard(path: Path) -> list[str]:
    """The names of a shard's files.

    Raises:
        ValueError: it is no tar file, or cut short.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.getnames()
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is no shard, or damaged ({error}): remove it") from error


def files_in_shard(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a shard in their order, one at a time."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, content.read()
