"""Pictures with captions from a folder to webdataset shards, and back."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..writing import new_folder
from .batches import Skipped
from .packing import add_file
from .sources import Captioned, PictureSource, shard_name

PER_SHARD = 10_000


def to_shards(
    source: PictureSource,
    target: Path,
    per_shard: int = PER_SHARD,
    on_picture: Callable[[int], None] | None = None,
) -> list[Skipped]:
    """Pack pictures into ``00000.tar`` … as img2dataset lays them out; the same pictures give the same bytes.

    Args:
        target: a new folder, which is there whole or not at all.
        on_picture: is told how many are done.

    Returns:
        What could not be read.

    Raises:
        ValueError: ``target`` exists, or two pictures would have one name.
    """

    def write(folder: Path) -> list[Skipped]:
        skipped: list[Skipped] = []
        names: set[str] = set()
        archive: tarfile.TarFile | None = None
        try:
            for index in range(len(source)):
                found = _read(source, index, skipped)
                if found is not None:
                    if len(names) % per_shard == 0:
                        if archive is not None:
                            archive.close()
                        archive = tarfile.open(folder / f"{len(names) // per_shard:05}.tar", "w")  # noqa: SIM115
                    assert archive is not None
                    name = _new_name(source.key(index), names)
                    facts = json.dumps({"key": name, "caption": found.caption}, ensure_ascii=False)
                    add_file(archive, f"{name}.{found.ending}", found.picture)
                    add_file(archive, f"{name}.txt", found.caption.encode())
                    add_file(archive, f"{name}.json", facts.encode())
                if on_picture is not None:
                    on_picture(index + 1)
        finally:
            if archive is not None:
                archive.close()
        return skipped

    return _whole_folder(target, write)


def to_folder(
    source: PictureSource, target: Path, on_picture: Callable[[int], None] | None = None
) -> list[Skipped]:
    """Unpack pictures into a folder, each with its caption in NAME.txt. As :func:`to_shards` else."""

    def write(folder: Path) -> list[Skipped]:
        skipped: list[Skipped] = []
        names: set[str] = set()
        for index in range(len(source)):
            found = _read(source, index, skipped)
            if found is not None:
                path = folder / _new_name(source.key(index), names)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f"{path.name}.{found.ending}").write_bytes(found.picture)
                path.with_name(f"{path.name}.txt").write_text(found.caption, encoding="utf-8")
            if on_picture is not None:
                on_picture(index + 1)
        return skipped

    return _whole_folder(target, write)


def _read(source: PictureSource, index: int, skipped: list[Skipped]) -> Captioned | None:
    try:
        return source.read(index)
    except (ValueError, OSError, RecursionError) as error:
        skipped.append((source.key(index), str(error)))
        return None


def _new_name(key: str, names: set[str]) -> str:
    """A name for a picture, whose dots would be taken for the start of its ending in a shard."""
    path = PurePosixPath(key.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError(f"the name {key!r} of a picture leads out of the folder: nothing was written")
    name = shard_name(path.as_posix())
    if name in names:
        raise ValueError(f"two pictures have the name {name!r}: rename one of them")
    names.add(name)
    return name


def _whole_folder(target: Path, write: Callable[[Path], list[Skipped]]) -> list[Skipped]:
    with new_folder(target) as folder:
        return write(folder)
