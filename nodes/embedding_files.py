"""Embedding files that a person can choose: listed and found by name.

``name`` lies in a folder ``embeddings`` of the model folders, ``name [output]`` in the output folder, where
Save unCLIP Embedding writes, ``name [input]`` in the input folder. Names are paths, always with ``/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..core.folders import require_name
from ..core.formats.files.safetensors_io import SUFFIX
from .catalogue import EMBEDDINGS_FOLDER, and_refresh, inside
from .host import input_folder, model_folders, output_folder

SAVED_FOLDER = "unclip_embeddings"
NONE_YET = f"none yet{SUFFIX}"

_ANNOTATED = re.compile(r"(.*?)\s*\[(input|output)\]", re.DOTALL)


def list_embeddings() -> list[str]:
    """Names of all embedding files, saved ones last. Where there is none, one name that says so."""
    names = [name for folder in _model_folders() for name in _scan(folder, folder)]
    for kind, folder in (("input", input_folder()), ("output", output_folder())):
        found = [*_scan(folder, folder, deep=False), *_scan(folder, folder / SAVED_FOLDER)]
        names += [f"{name} [{kind}]" for name in found]
    # An empty choice would make ComfyUI refuse the node without a reason; loading this name gives one.
    return list(dict.fromkeys(names)) or [NONE_YET]


def all_embeddings() -> Iterator[Path]:
    """Every file that a name can find, also those that lie too deep to be listed."""
    for folder in (*_model_folders(), input_folder(), output_folder()):
        yield from (folder / name for name in _scan(folder, folder))


def find_embedding(name: str) -> Path:
    """The path of an embedding file by its listed name.

    Raises:
        ValueError: a name that leads out of its folder, or no such file.
    """
    require_name("file", name)
    annotated = _ANNOTATED.fullmatch(name)
    if annotated:
        relative = annotated[1]
        folders = [input_folder() if annotated[2] == "input" else output_folder()]
    else:
        relative, folders = name, _model_folders()
    for folder in folders:
        path = inside(folder, relative, "file")
        if path.suffix == SUFFIX and path.is_file():
            return path
    places = folders[1:] or folders  # the first is the pack's own, which is no place for a person's files
    raise ValueError(
        f"file: there is no embedding {name!r} in {', '.join(map(str, places))}. Save one with Save unCLIP "
        f"Embedding, or put its {SUFFIX} file there{and_refresh()}."
    )


def _model_folders() -> list[Path]:
    return [folder / EMBEDDINGS_FOLDER for folder in model_folders()]


def _scan(root: Path, folder: Path, *, deep: bool = True) -> Iterator[str]:
    """Names, relative to ``root``, of the safetensors files in a folder and, if ``deep``, below it."""
    if folder.is_dir():
        pattern = f"*{SUFFIX}"
        found = folder.rglob(pattern) if deep else folder.glob(pattern)
        yield from sorted(
            path.relative_to(root).as_posix()
            for path in found
            if path.is_file() and not path.name.startswith(".")
        )
