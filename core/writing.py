"""Files written whole or not at all: beside their place first, then renamed; and what killed runs leave."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from platform import node

STALE = 24 * 3600.0  # seconds after which no unfinished file is still being written, whoever writes it

_UNFINISHED = re.compile(r"\..+\.(?P<process>\d+)(-(?P<machine>[0-9a-f]{8}))?\.tmp", re.DOTALL)
_swept: set[Path] = set()


@contextlib.contextmanager
def written_whole(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which takes its place when the block ends well.

    What a block that fails has written is removed. What a process that was killed has left in the folder is
    removed by the next one that writes there.

    Args:
        new: replace nothing.

    Raises:
        FileExistsError: with ``new``, where ``path`` is there when the block has ended.
    """
    remove_leftovers(path.parent)
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        if new:
            take_free(unfinished, path)
        else:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def take_free(unfinished: Path, path: Path) -> None:
    """Give a file a name that nothing has, whoever else is looking for one.

    Raises:
        FileExistsError: something has it.
    """
    try:
        os.link(unfinished, path)  # which alone fails where the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        unfinished.replace(path)


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in ``parent``, to make files in that are then moved with one rename each.

    It is removed with all that is still in it when the block ends, and by the next process that writes in
    ``parent`` where this one was killed.
    """
    remove_leftovers(parent)
    suffix = f".{os.getpid()}-{_machine()}.tmp"
    with tempfile.TemporaryDirectory(prefix=".unclip-", suffix=suffix, dir=parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside ``target`` to fill, which takes its place when the block ends well.

    Raises:
        ValueError: ``target`` exists and is not an empty folder, or came to be one meanwhile.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _exists_already(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    unfinished = unfinished_path(target)
    unfinished.mkdir()
    try:
        yield unfinished
        try:
            if target.exists():
                target.rmdir()
            unfinished.rename(target)
        except OSError:
            if target.exists():  # another process was faster
                raise _exists_already(target) from None
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _exists_already(target: Path) -> ValueError:
    return ValueError(f"{target} exists already: choose a new folder, or remove it")


def unfinished_path(path: Path) -> Path:
    """The hidden file beside ``path`` that this process writes before it renames it; names its writer."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_machine()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files and folders of processes that are no more, once for a folder and process.

    Whether a process of another machine lives cannot be seen from here; its files go when they are STALE.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):  # a folder that cannot be read: writing there says so
        for entry in list(os.scandir(folder)):
            found = _UNFINISHED.fullmatch(entry.name)
            if found is None or not _is_left(entry, found):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _is_left(entry: os.DirEntry, name: re.Match) -> bool:
    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
        return True
    return name["machine"] == _machine() and not _lives(int(name["process"]))


def _lives(process: int) -> bool:
    if process == os.getpid():
        return True
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def _machine() -> str:
    """Tells machines that share a folder apart, without their names."""
    return f"{zlib.crc32(node().encode()):08x}"
