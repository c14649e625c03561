"""Numbered file names below a folder, the way ComfyUI numbers what it saves: ``name_00001_.png``."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..folders import require_name

_LONGEST_ENDING = "_00001_.safetensors.1234567-12345678.tmp"  # of an unfinished file


def place_files(
    prefix: str, folder: Path, codes: Mapping[str, object] | None = None
) -> tuple[Path, str, int]:
    """Where files of a prefix go: folder, start of the name, and the first free number.

    ``%year%``, ``%month%``, ``%day%``, ``%hour%``, ``%minute%`` and ``%second%`` in the prefix are replaced,
    and what ``codes`` names besides.

    Raises:
        ValueError: the prefix leads out of the folder, or cannot be a name at all.
    """
    now = time.localtime()
    clock = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
    known = {name: time.strftime(code, now) for name, code in clock.items()}
    for name, value in {**known, **(codes or {})}.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    require_name("filename_prefix", prefix, _LONGEST_ENDING)
    folder = folder.resolve()
    target = (folder / prefix).resolve()
    if target == folder or not target.is_relative_to(folder):
        raise ValueError(
            f"filename_prefix {prefix!r} is not a name inside the output folder {folder}; use a name, or "
            "sub-folder/name."
        )
    pattern = re.compile(re.escape(os.path.normcase(target.name)) + r"_(\d+)(_.*|\..*)?")
    taken = [0]
    if target.parent.is_dir():
        for entry in target.parent.iterdir():
            matched = pattern.fullmatch(os.path.normcase(entry.name))
            if matched:
                taken.append(int(matched[1]))
    return target.parent, target.name, max(taken) + 1


def write_next(
    folder: Path, stem: str, number: int, ending: str, write: Callable[[Path], object]
) -> tuple[Path, int]:
    """Write ``stem_NNNNN_`` + ``ending`` under the first free number from this one on: another run may have
    taken some since :func:`place_files` looked, and keeps them.

    Args:
        write: raises FileExistsError, and has written nothing, where the file is there.

    Returns:
        The file, and the number behind its own.
    """
    while True:
        path = folder / f"{stem}_{number:05}_{ending}"
        number += 1
        with contextlib.suppress(FileExistsError):
            write(path)
            return path, number
