"""Pictures as files."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, PngImagePlugin
from torch import Tensor

from .sheet import to_pil

PNG_COMPRESSION = 4  # what ComfyUI saves with


def numbered(path: Path, count: int) -> list[Path]:
    """``fox.png``; for several pictures ``fox-1.png``, ``fox-2.png``, …, all with as many digits."""
    if count == 1:
        return [path]
    digits = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{digits}}") for number in range(1, count + 1)]


def write_png(
    path: Path,
    picture: Image.Image,
    metadata: PngImagePlugin.PngInfo | None = None,
    compression: int = PNG_COMPRESSION,
) -> None:
    """Write a PNG whole or not at all: beside its place first, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(beside, format="PNG", pnginfo=metadata, compress_level=compression)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def save(images: Tensor, path: str | Path) -> list[Path]:
    """Save pictures as PNG files.

    Args:
        images: [N, 3, H, W] in 0..1.
        path: ends in ``.png``; with N > 1 the files are numbered, see :func:`numbered`.

    Returns:
        The files, in the order of the pictures.

    Raises:
        ValueError: another shape, or another kind of file.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images: found shape {tuple(images.shape)}, expected [N, 3, H, W]")
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: found {path}, expected a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = numbered(path, len(images))
    for file, picture in zip(files, to_pil(images), strict=True):
        write_png(file, picture)
    return files
