"""ComfyUI's LoadImage, LoadImageOutput and LoadImageMask, as in its nodes.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from ....core.pictures.opening import read_file, upright
from .folders import find_picture, list_pictures

NO_ALPHA_MASK = (64, 64)  # size of the empty mask that ComfyUI gives for a picture without transparency


def _check_picture(name: Any) -> bool | str:
    """ComfyUI's form of an answer to VALIDATE_INPUTS: True, or what is wrong. None stands for a link."""
    if name is None:
        return True
    try:
        find_picture(name)
    except ValueError as error:
        return str(error)
    return True


def _pixels(frame: Image.Image) -> Tensor:
    """[H, W, C] or [H, W] float32 in 0..1."""
    return torch.from_numpy(np.asarray(frame).astype(np.float32) / 255.0)


class _PictureNode:
    """A node whose ``image`` is a file: it must be there, and its time says whether it changed."""

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return _check_picture(image)

    @classmethod
    def IS_CHANGED(cls, image: str, **_: Any) -> int:  # noqa: N802
        return find_picture(image).stat().st_mtime_ns


class LoadImage(_PictureNode):
    """ComfyUI's LoadImage: a picture (or the frames of an animation) and its transparency as a mask."""

    CATEGORY = "image"
    DESCRIPTION = "Loads a picture from the input folder."
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"image": (list_pictures(), {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        """IMAGE [B, H, W, 3] and MASK [B, H, W] (1 − alpha; zeros of 64×64 where there is no alpha)."""
        pictures, masks = read_file(find_picture(image), _frames)
        # Frames of one animation may differ in whether they have alpha; a stack needs one size.
        if len({mask.shape for mask in masks}) > 1:
            size = pictures[0].shape[:2]
            masks = [mask if mask.shape == size else torch.zeros(size) for mask in masks]
        return torch.stack(pictures), torch.stack(masks)


def _frames(opened: Image.Image) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures [H, W, 3] and masks of the frames that have the size of the first."""
    pictures: list[Tensor] = []
    masks: list[Tensor] = []
    for raw in ImageSequence.Iterator(opened):
        frame = upright(raw)
        rgb = _pixels(frame.convert("RGB"))  # [H, W, 3]
        if pictures and rgb.shape != pictures[0].shape:
            continue
        if frame.has_transparency_data:
            mask = 1.0 - _pixels(frame.convert("RGBA").getchannel("A"))  # [H, W]
        else:
            mask = torch.zeros(NO_ALPHA_MASK)
        pictures.append(rgb)
        masks.append(mask)
        if opened.format == "MPO":  # further frames are depth maps and thumbnails
            break
    return pictures, masks


class LoadImageOutput(LoadImage):
    """ComfyUI's LoadImageOutput: LoadImage that offers what was made, as ``fox_00001_.png [output]``."""

    DESCRIPTION = "Loads a picture from the output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        offered = [f"{name} [output]" for name in list_pictures("output")]
        return {"required": {"image": (offered, {"image_upload": True, "image_folder": "output"})}}


class LoadImageMask(_PictureNode):
    """ComfyUI's LoadImageMask: one channel of a picture as a mask."""

    CATEGORY = "mask"
    DESCRIPTION = "Loads one channel of a picture as a mask."
    CHANNELS = ("alpha", "red", "green", "blue")
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": (list_pictures(), {"image_upload": True}),
                "channel": (list(cls.CHANNELS),),
            }
        }

    def load_image(self, image: str, channel: str) -> tuple[Tensor]:
        """MASK [1, H, W]; alpha is inverted (1 where the picture is transparent)."""

        def values_of(opened: Image.Image) -> Tensor:
            return _pixels(upright(opened).convert("RGBA").getchannel(channel[0].upper()))  # [H, W]

        values = read_file(find_picture(image), values_of)
        return ((1.0 - values if channel == "alpha" else values)[None],)
