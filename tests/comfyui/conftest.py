"""A ComfyUI server that has this pack, for the tests in this folder.

They run where COMFYUI_DIR names a ComfyUI checkout. COMFYUI_PYTHON is the Python to start it with, one that
has the requirements of both; without it, the Python of the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..helpers.bundle import write_tiny_bundle
from .server import PACK, running


@pytest.fixture(scope="session")
def comfyui_dir() -> Path:
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set: no ComfyUI to test against")
    if not (Path(folder) / "main.py").is_file():
        pytest.fail(f"COMFYUI_DIR is {folder}, which has no main.py")
    return Path(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A model folder with the bundle `tiny`, and `small` which has one upsampler only."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_bundle(folder / "tiny")
    write_tiny_bundle(folder / "small", upsamplers=1)
    return folder


def masked_picture() -> Image.Image:
    """A picture of 300×200 pixels with a mask, as the page's mask editor saves it: in its alpha."""
    x, y = np.meshgrid(np.arange(300), np.arange(200))
    hole = (np.abs(x - 180) < 50) & (np.abs(y - 110) < 40)
    pixels = np.stack([x * 255 // 300, y * 255 // 200, (x + y) % 256, np.where(hole, 0, 255)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


@pytest.fixture(scope="session")
def server(comfyui_dir, models, tmp_path_factory):
    """ComfyUI with this pack in custom_nodes and `models` as its folder models/unclip."""
    base = tmp_path_factory.mktemp("comfyui")
    links = {
        "custom_nodes/unclip": PACK,
        "custom_nodes/faults.py": Path(__file__).with_name("faults.py"),
        "models/unclip": models,
    }
    for link, target in links.items():
        (base / link).parent.mkdir(exist_ok=True)
        (base / link).symlink_to(target)
    (base / "input").mkdir()
    masked_picture().save(base / "input" / "example.png")  # a new ComfyUI has one of that name
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    with running(comfyui_dir, python, base, {"OMP_NUM_THREADS": "1"}) as started:
        yield started
