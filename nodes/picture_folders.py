"""Folders of pictures that a person can choose: those in the input folder, listed and found by name.

Names are paths from the input folder, always with ``/``; ``.`` is the input folder itself.
"""

from __future__ import annotations

from pathlib import Path

from ..core.pictures.files import folders_below, picture_names
from .catalogue import and_refresh, inside
from .host import input_folder


def list_folders() -> list[str]:
    """Names of all folders in the input folder, itself first."""
    root = input_folder()
    return [".", *(path.relative_to(root).as_posix() for path in folders_below(root)[1:])]


def find_folder(name: str) -> Path:
    """The path of a folder by its listed name.

    Raises:
        ValueError: a name that leads out of the input folder, or no such folder.
    """
    root = input_folder()
    path = inside(root, name, "folder", "the input folder")
    if not path.is_dir():
        raise ValueError(
            f"folder: there is no folder {name!r} in the input folder {root}. Make it and put pictures into "
            f"it{and_refresh()}, or choose another one."
        )
    return path


def find_pictures(name: str, *, subfolders: bool, max_pictures: int) -> tuple[Path, list[str]]:
    """A folder and the names of its pictures.

    Args:
        name: of the folder, as listed.
        subfolders: with the pictures of the folders below it.
        max_pictures: so many of them, the first by name; 0 for all.

    Raises:
        ValueError: no such folder, no pictures in it, or a negative number.
    """
    if max_pictures < 0:
        raise ValueError(f"max_pictures is {max_pictures}; expected 0, which takes all of them, or more")
    folder = find_folder(name)
    names = picture_names(folder, subfolders=subfolders)
    if not names:
        below = "" if subfolders else " turn subfolders on if they lie deeper,"
        raise ValueError(
            f"folder: there are no pictures in {folder}. Put some there,{below} or choose another folder."
        )
    return folder, names[: max_pictures or None]
