"""Where the stand-ins for ComfyUI's nodes read and write, and how they find and name files there."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ....core.pictures import numbered_names
from ....core.pictures.files import IMAGE_SUFFIXES


@dataclass
class Folders:
    """Where pictures are read and written.

    Attributes:
        input: LoadImage's names are relative to it.
        output: SaveImage writes below it.
        temp: PreviewImage writes into it; made when it is first needed if None.
        written: every file written so far, in order.
    """

    input: Path
    output: Path
    temp: Path | None = None
    written: list[Path] = field(default_factory=list)

    def of(self, kind: str) -> Path:
        """The folder of an annotated name's kind: ``input``, ``output`` or ``temp``."""
        if kind == "temp":
            if self.temp is None:
                self.temp = Path(tempfile.mkdtemp(prefix="unclip-preview-"))
            return self.temp
        return self.input if kind == "input" else self.output


_folders: ContextVar[Folders | None] = ContextVar("folders", default=None)


@contextlib.contextmanager
def use_folders(folders: Folders) -> Iterator[Folders]:
    """Inside the block, the nodes of this room read and write in these folders."""
    token = _folders.set(folders)
    try:
        yield folders
    finally:
        _folders.reset(token)


def current_folders() -> Folders:
    """The folders of the surrounding `use_folders`; outside of one, ``input`` and ``output`` here."""
    return _folders.get() or Folders(Path("input"), Path("output"))


# --------------------------------------------------------------------------------------------------- reading


def list_pictures(kind: str = "input") -> list[str]:
    """Names of the pictures in the folder of a kind."""
    folder = current_folders().of(kind)
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def find_picture(name: str) -> Path:
    """The path of an input picture by its name, which may end in `` [input]``, `` [output]`` or `` [temp]``.

    Raises:
        ValueError: no text, a name that leads out of its folder, or no such file.
    """
    if not isinstance(name, str):
        raise ValueError(f"found {name!r}, expected the name of a picture in the input folder.")
    kind = "input"
    annotated = re.fullmatch(r"(.*?)\s*\[(input|output|temp)\]", name, re.DOTALL)
    if annotated:
        name, kind = annotated.groups()
    folder = current_folders().of(kind).resolve()
    path = _resolved(folder, name)
    if path is not None and not path.is_relative_to(folder):
        raise ValueError(
            f"{name!r} lies outside the {kind} folder {folder}. Choose another folder with --input, and name "
            "the picture relative to it."
        )
    if path is None or not path.is_file():
        raise ValueError(
            f"there is no picture {name!r} in the {kind} folder {folder}. Put it there, or choose another "
            "folder with --input."
        )
    return path


def _resolved(folder: Path, name: str) -> Path | None:
    """None for what no file can be called: names that are too long, or with a NUL in them."""
    try:
        path = (folder / name).resolve()
        path.is_file()
    except (OSError, ValueError):
        return None
    return path


# --------------------------------------------------------------------------------------------------- writing


class Place(NamedTuple):
    """A numbered name below one of the folders.

    Attributes:
        folder: is there.
        stem, number: the file is ``{stem}_{number:05}_`` and a suffix.
        subfolder: the folder's path from its root, as ComfyUI reports it.
    """

    folder: Path
    stem: str
    number: int
    subfolder: str


def place(prefix: str, kind: str, width: int, height: int) -> Place:
    """Where the files of a ``filename_prefix`` go, as ComfyUI numbers them; makes the folder.

    Raises:
        ValueError: see `place_files`.
    """
    root = current_folders().of(kind)
    folder, stem, number = numbered_names.place_files(prefix, root, {"width": width, "height": height})
    folder.mkdir(parents=True, exist_ok=True)
    subfolder = folder.relative_to(root.resolve()).as_posix()
    return Place(folder, stem, number, "" if subfolder == "." else subfolder)


def write_next(
    where: Place, ending: str, write: Callable[[Path], None], stem: str = ""
) -> tuple[Path, Place]:
    """Write a file under the first number from that of a place on that is free.

    Args:
        write: raises FileExistsError, and has written nothing, where the file is there.
        stem: in place of the place's.

    Returns:
        The file, and the place behind it.
    """
    stem = stem or where.stem
    path, number = numbered_names.write_next(where.folder, stem, where.number, ending, write)
    return path, where._replace(number=number)


def report(path: Path, subfolder: str, kind: str) -> dict[str, str]:
    """Note a file as written; gives ComfyUI's entry for it in a node's answer."""
    current_folders().written.append(path)
    return {"filename": path.name, "subfolder": subfolder, "type": kind}
