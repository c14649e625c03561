"""Small pictures with captions: as a folder, as shards, as embeddings."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 70), "blue": (40, 70, 210), "yellow": (230, 200, 60)}


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A disc of one colour on noise."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(150, 255, (size[1], size[0], 3), dtype=np.uint8)
    x, y = rng.integers(12, 28, 2)
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels[(columns - x) ** 2 + (rows - y) ** 2 < 100] = COLOURS[colour_of(number)]
    return Image.fromarray(pixels)


def colour_of(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


def encoded(image: Image.Image, ending: str = "png", **options: object) -> bytes:
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[ending]
    target = io.BytesIO()
    image.save(target, kind, **({"lossless": True} if ending == "webp" else {}), **options)
    return target.getvalue()


def write_pictures(folder: Path, count: int = 60, size: tuple[int, int] = (48, 40)) -> Path:
    """``0000.png`` with ``0000.txt`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(encoded(picture(number, size)))
        (folder / f"{number:04}.txt").write_text(f"a {colour_of(number)} disc")
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A shard of files in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards_of(folder: Path, target: Path, per_shard: int = 25) -> Path:
    """The pictures of ``write_pictures`` as img2dataset lays shards out."""
    pictures = sorted(folder.glob("*.png"))
    for first in range(0, len(pictures), per_shard):
        files = {}
        for path in pictures[first : first + per_shard]:
            caption = path.with_suffix(".txt").read_text()
            files[path.name] = path.read_bytes()
            files[f"{path.stem}.json"] = json.dumps({"caption": caption, "key": path.stem}).encode()
            files[f"{path.stem}.txt"] = caption.encode()
        write_tar(target / f"{first // per_shard:05}.tar", files)
    return target
