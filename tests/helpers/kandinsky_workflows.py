"""The shipped workflows of Kandinsky, made small enough to run with the models of ``published_models``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .published_models import (
    KANDINSKY_21,
    KANDINSKY_SIDE,
    PRIOR_21,
    PRIOR_22,
    write_decoder,
    write_operator,
    write_prior,
)

DECODERS = {
    "kandinsky22_text_to_image": "kandinsky-2-2-decoder",
    "kandinsky22_image_mix": "kandinsky-2-2-decoder",
    "kandinsky22_inpaint": "kandinsky-2-2-decoder-inpaint",
    "kandinsky22_depth": "kandinsky-2-2-controlnet-depth",
    "kandinsky22_img2img": "kandinsky-2-2-decoder",
    "kandinsky22_interpolation_video": "kandinsky-2-2-decoder",
    "kandinsky22_text_diff": "kandinsky-2-2-decoder",
    "kandinsky21_text_to_image": "kandinsky-2-1",
    "pops_texturing": "kandinsky-2-2-decoder",
    "kandinsky22_native_ksampler": "kandinsky-2-2-decoder",
}
"""Workflow → the folder of its decoder."""
IN_COMFYUI_ONLY = {"kandinsky22_native_ksampler"}
OPERATORS = {"pops_texturing": "pops/texturing/learned_prior.pth"}

PICTURE, WIDE, FRAMES = (48, 40), (192, 128), 3  # width, height
OWN, LIKE_PICTURE = (KANDINSKY_SIDE, KANDINSKY_SIDE), (112, 144)
MAKES = {
    "kandinsky22_text_to_image": [(WIDE[1], WIDE[0])],
    "kandinsky22_image_mix": [OWN],
    "kandinsky22_inpaint": [(PICTURE[1], PICTURE[0])],
    "kandinsky22_depth": [OWN],
    "kandinsky22_img2img": [LIKE_PICTURE],
    "kandinsky22_interpolation_video": [OWN] * FRAMES,
    "kandinsky22_text_diff": [LIKE_PICTURE] * FRAMES,
    "kandinsky21_text_to_image": [(WIDE[1], WIDE[0])],
    "pops_texturing": [OWN],
    "kandinsky22_native_ksampler": [(WIDE[1], WIDE[0])],
}
"""Height and width of every picture, or frame, that each makes when it is small."""
FRAME_RATE = 8


def prior_of(name: str) -> str:
    return PRIOR_21 if DECODERS[name] in KANDINSKY_21 else PRIOR_22


def models_of(name: str) -> list[str]:
    """Its models, below the model folder."""
    operators = [OPERATORS[name]] if name in OPERATORS else []
    return [prior_of(name), DECODERS[name], *operators]


def write_models(folder: Path) -> list[Path]:
    """All of them, as their notes say; gives the folders."""
    written = [write_prior(folder / prior) for prior in (PRIOR_22, PRIOR_21)]
    written += [write_decoder(folder / decoder) for decoder in dict.fromkeys(DECODERS.values())]
    for operator in OPERATORS.values():
        written.append(folder / operator.split("/")[0])
        write_operator(folder / operator)
    return written


def write_picture(folder: Path) -> Path:
    """What the workflows load."""
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURE[1], PICTURE[0], 3), dtype=np.uint8)
    path = folder / "example.png"
    Image.fromarray(pixels).save(path)
    return path


def small(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Other values for some inputs of a node: few steps and frames, small pictures, in float32."""
    few: dict[str, Any] = {"steps": 2, "precision": "fp32", "seed": 0}
    if inputs.get("frames", 0) > FRAMES:
        few["frames"] = FRAMES
    if inputs.get("width", 0) > 1:  # pixels; regions have shares of 1
        few |= {"width": WIDE[0], "height": WIDE[1]}
    return {name: value for name, value in few.items() if name in inputs}
