"""Folders walked without end in sight, names that people give to files, and whether files changed."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_NAME = 255  # bytes, on nearly all file systems
LONGEST_PATH = 4000


def walk_once(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders with the names of their folders and files, sorted, as ``os.walk`` gives them.

    Links are followed, but each real folder is walked once, so that links that lead back, or to each other,
    end. It has its own name where it lies below ``root``, else that of a link. What is taken out of a list of
    folders is not walked.
    """
    seen: set[str] = set()
    waiting = deque([root])  # links wait until all real folders are walked
    while waiting:
        for here, folders, files in os.walk(waiting.popleft()):
            real = os.path.realpath(here)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            yield Path(here), folders, sorted(files)
            waiting.extend(path for name in folders if (path := Path(here, name)).is_symlink())


def require_name(what: str, name: Any, ending: str = "") -> None:
    """Raise a ValueError that tells ``what`` it is of, unless a text, with an ``ending``, may name a file."""
    if not isinstance(name, str):
        raise ValueError(f"{what}: found {_shown(name)}, expected a name")
    try:
        encoded = os.fsencode(name + ending)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"{what}: {_shown(name)} holds characters that no file name can hold")
    longest = max(map(len, encoded.replace(b"\\", b"/").split(b"/")))
    if longest > LONGEST_NAME or len(encoded) > LONGEST_PATH:
        raise ValueError(
            f"{what}: {_shown(name)} has {longest} bytes, or {len(encoded)} with its folders; expected at "
            f"most {LONGEST_NAME}, or {LONGEST_PATH}"
        )


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes with the files' names, sizes and times of change, without reading them."""
    found = hashlib.sha256()
    for path in paths:
        status = path.stat()
        found.update(f"{path}\n{status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def _shown(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` is the home folder; as it is where nobody has that home."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
