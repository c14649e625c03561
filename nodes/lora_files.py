"""LoRA files that a person can choose: listed and found by name, a path that is always written with ``/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.folders import require_name, walk_once
from .catalogue import and_refresh, if_elsewhere, inside
from .host import LORA_FOLDERS_VARIABLE, MODEL_EXTENSIONS, lora_folders, named_loras

NO_LORA = "none"
"""Leaves the models as they are."""


def list_loras() -> list[str]:
    """Names of all LoRA files, for whatever network; first the one that stands for none."""
    names = {name for folder in lora_folders() for name in _scan(folder)}
    return [NO_LORA, *sorted(names)]


def find_lora(name: str, folders: Sequence[Path] | None = None) -> Path | None:
    """The path of a LoRA file by its listed name; None for none.

    Args:
        folders: are looked into in place of the folders of LoRAs, and without the names of this process.

    Raises:
        ValueError: a name that leads out of its folder, or no such file.
    """
    require_name("lora", name)
    if name == NO_LORA:
        return None
    if folders is None and name in named_loras:
        return named_loras[name]
    folders = lora_folders() if folders is None else folders
    for folder in folders:
        path = inside(folder, name, "lora", "the folders of LoRAs")
        if path.suffix in MODEL_EXTENSIONS and path.is_file():
            return path
        if path.is_file():
            raise ValueError(
                f"lora: {name!r} is no file of weights, which end in {', '.join(MODEL_EXTENSIONS)}"
            )
    where = ", ".join(map(str, folders)) or "models/loras"
    raise ValueError(
        f"lora: there is no file {name!r} in {where}. Put it there{and_refresh()}, or choose another one."
        f"{if_elsewhere('its folder', LORA_FOLDERS_VARIABLE)}"
    )


def _scan(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    found = [
        folder.relative_to(root) / file
        for folder, subfolders, files in walk_once(root)
        for file in files
        if not file.startswith(".") and file.endswith(MODEL_EXTENSIONS)
    ]
    return [path.as_posix() for path in found]
