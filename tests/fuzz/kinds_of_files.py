"""Cases of damaged files: checkpoints, embeddings, pictures and settings."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from unclip.cli.measuring import read_settings
from unclip.cli.workflow.builtin_nodes import Folders, LoadImage, LoadImageMask, use_folders
from unclip.core.config import config_from_dict
from unclip.core.evaluation.manipulations.config import ManipulationsConfig
from unclip.core.evaluation.quality.config import EvaluationConfig
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.native.embedding_file import load_embedding
from unclip.core.pictures.files import picture_names, read_pictures
from unclip.core.pictures.numbered_names import place_files
from unclip.core.training.stages import RECIPES, read_toml
from unclip.nodes import NODE_CLASS_MAPPINGS, host

from .case import Case
from .damage import ODD_NUMBERS, ODD_TEXTS, damaged_bytes, damaged_document, damaged_file, places

ROOT = Path(__file__).resolve().parents[2]
# What is loaded, of which stage, and whose file is damaged.
CHECKPOINTS = (
    ("native/prior.safetensors", "prior"),
    ("native/decoder.safetensors", "decoder"),
    ("native/clip.safetensors", "clip"),
    ("native/ar-prior.safetensors", "prior"),
    ("shards/decoder.safetensors", "decoder"),
    ("karlo/prior", "prior"),
    ("karlo/decoder", "decoder"),
    ("laion/best.pth", "prior"),
)


def checkpoint_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """A model file, or a file beside it, damaged."""
    name, stage = rng.choice(CHECKPOINTS)
    folder = Path(name).parts[0]
    shutil.copytree(whole / "models" / folder, scratch / folder)
    path = scratch / name
    beside = path if path.is_dir() else path.parent
    files = [
        p for p in beside.rglob("*") if p.is_file() and (path.is_dir() or p.stem.startswith(path.stem[:5]))
    ]
    damaged = rng.choice(sorted(files))
    what, content = damaged_file(rng, damaged.name, damaged.read_bytes())
    damaged.unlink()  # what is mapped of the file, by another case, stays as it is
    damaged.write_bytes(content)
    run = lambda: load_any_stage(path, expect=stage)  # noqa: E731
    return Case(f"{name}: {damaged.name}: {what}", run, (str(scratch),))


def embedding_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """An embedding file damaged, asked for by an odd name, or saved under one."""
    folder = scratch / "output" / "unclip_embeddings"
    folder.mkdir(parents=True)
    path = folder / "three.safetensors"
    way = rng.choice(("file", "file", "name", "prefix"))
    what, content = "whole", (whole / "three.safetensors").read_bytes()
    name: Any = "unclip_embeddings/three.safetensors [output]"
    if way == "file":
        what, content = damaged_file(rng, path.name, content)
    elif way == "name":
        name = rng.choice((*ODD_TEXTS, 5, None, [], "three.safetensors [input]", "a/" * 2000, "~/x"))
        what = f"{name!r:.40}"
    path.write_bytes(content)
    if way == "prefix":
        prefix = rng.choice((*ODD_TEXTS, "%year%/%month%", "a/b/c", ".", ".."))
        return Case(f"prefix {prefix!r:.40}", lambda: place_files(prefix, scratch), ("filename_prefix",))

    def run() -> None:
        host.set_folders(scratch, scratch / "output")
        try:
            node = NODE_CLASS_MAPPINGS["UnCLIPLoadEmbedding"]
            answer = node.VALIDATE_INPUTS(file=name)
            if answer is not True:
                raise ValueError(f"file: {answer}")
            embedding = load_embedding(path) if way == "file" else node().execute(name)[0]
            assert torch.isfinite(embedding.space.standardise(embedding.vectors)).all()
        finally:
            host.set_folders(None, None)

    return Case(f"{way}: {what}", run, (str(path), "file"))


def odd_picture(rng: random.Random) -> tuple[str, bytes]:
    """A whole picture of any kind that files hold."""
    width, height = rng.choice(((16, 16), (1, 1), (1, 300), (300, 1), (31, 17), (1, 4000)))
    draw = np.random.default_rng(rng.randrange(2**32))
    rgb = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
    grey = draw.integers(0, 65536, (height, width))
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "clear.png": (rgb.convert("RGBA"), {}),
        "grey.png": (rgb.convert("L"), {}),
        "bits.png": (rgb.convert("1"), {}),
        "palette.png": (rgb.quantize(7), {"transparency": 0}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16)), {}),
        "rgb.jpg": (rgb, {}),
        "print.jpg": (rgb.convert("CMYK"), {}),
        "odd exif.jpg": (rgb, {"exif": b"Exif\0\0" + rng.randbytes(40)}),
        "moving.gif": (rgb, {"save_all": True, "append_images": [rgb.rotate(9), rgb.rotate(50)]}),
        "rgb.webp": (rgb, {}),
        "moving.webp": (rgb, {"save_all": True, "append_images": [rgb.rotate(9)]}),
        "pages.tif": (rgb, {"save_all": True, "append_images": [rgb.rotate(9), rgb.resize((5, 5))]}),
        "unit.tif": (Image.fromarray((grey / 65535).astype(np.float32)), {}),
        "float.tif": (Image.fromarray(grey.astype(np.float32)), {}),
        "nan.tif": (Image.fromarray(np.full((height, width), np.nan, np.float32)), {}),
        "int.tif": (Image.fromarray(grey.astype(np.int32) * 9999), {}),
        "lab.tif": (rgb.convert("LAB"), {}),
        "rgb.bmp": (rgb, {}),
    }
    name = rng.choice(sorted(kinds))
    picture, options = kinds[name]
    target = io.BytesIO()
    picture.save(target, Image.registered_extensions()[Path(name).suffix], **options)
    return name, target.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def damaged_picture(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Damage to any picture; of PNGs also the size that they claim, and their chunks."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.5:
        return damaged_bytes(rng, data)
    size = rng.choice(((65535, 65535), (2**31 - 1, 1), (20000, 20000), (0, 0), (1, 0)))
    bomb = zlib.compress(b"[" * (2 << 20))
    return rng.choice(
        (
            (
                f"claims to be {size}",
                data[:8] + chunk(b"IHDR", struct.pack(">II", *size) + data[24:29]) + data[33:],
            ),
            ("a text of 2 MB", data[:33] + chunk(b"zTXt", b"workflow\0\0" + bomb) + data[33:]),
            (
                "an odd text",
                data[:33] + chunk(rng.choice((b"tEXt", b"iTXt", b"zTXt")), b"prompt") + data[33:],
            ),
            ("odd EXIF", data[:33] + chunk(b"eXIf", rng.randbytes(30)) + data[33:]),
            ("no pixels", data[: data.find(b"IDAT") - 4] + chunk(b"IEND", b"")),
            ("two headers", data[:33] + data[8:33] + data[33:]),
        )
    )


def picture_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """A picture of any kind, mostly damaged, by LoadImage, LoadImageMask, or as one of a folder."""
    name, data = odd_picture(rng)
    what = "whole"
    if rng.random() < 0.8:
        what, data = damaged_picture(rng, data)
    (scratch / name).write_bytes(data)
    way = rng.choice(("LoadImage", "LoadImageMask", "folder"))

    def run() -> None:
        with use_folders(Folders(scratch, scratch)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if way == "folder":
                found = list(read_pictures(scratch, picture_names(scratch)))
            elif way == "LoadImage":
                found = LoadImage().load_image(name)
            else:
                found = LoadImageMask().load_image(name, "red")
        assert all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in found)

    return Case(f"{name} by {way}: {what}", run, (name,))


def toml_of(table: dict[str, Any], *path: str) -> str:
    """TOML of plain settings."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"[{'.'.join(map(json.dumps, path))}]"] if path else []
    lines += [f"{json.dumps(key)} = {_value(table[key])}" for key in table if key not in inner]
    return "\n".join([*lines, *(toml_of(value, *path, key) for key, value in inner.items())])


def _value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, float):
        return repr(value)  # nan and inf are written alike
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def config_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """The settings of an evaluation or a training run, with one of them changed."""
    whole = (ROOT / "models" / "mini" / "configs").glob("[!v]*.toml")  # varied.toml is a part of others
    path = rng.choice(sorted(whole))
    settings = read_toml(path)
    if rng.random() < 0.5:
        what, settings = damaged_document(rng, settings)
    else:
        numbers = [
            (table, key)
            for table, key in places(settings)
            if isinstance(table[key], (int, float)) and not isinstance(table[key], bool)
        ]
        table, key = rng.choice(numbers)
        table[key] = rng.choice(ODD_NUMBERS)
        what = f"{key!r} is {table[key]}"
    text = toml_of(settings if isinstance(settings, dict) else {"all": settings})
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        what, data = damaged_bytes(rng, data)
    config = scratch / "settings.toml"
    config.write_bytes(data)
    kinds = {"eval": EvaluationConfig, "probe": ManipulationsConfig}

    def run() -> None:
        kind = path.stem.split("-")[0]
        if kind in kinds:
            read_settings(kinds[kind], config, None, None)
            return
        stage = next(name for name in sorted(RECIPES, key=len, reverse=True) if path.stem.startswith(name))
        module, config_name, _ = RECIPES[stage]
        config_from_dict(getattr(_module(module), config_name), read_toml(config), str(config))

    fields = {str(key) for _, key in places(settings) if isinstance(key, str)}
    return Case(
        f"{path.stem}: {what}", run, (str(config), *sorted(field for field in fields if len(field) > 3))
    )


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(name, "unclip.core.training")
