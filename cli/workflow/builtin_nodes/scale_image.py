"""ComfyUI's ImageScale and ImageScaleBy, as in its nodes.py and comfy/utils.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .save_image import picture_of

MAX_SIDE = 16384  # pixels
METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")


class ImageScale:
    """ComfyUI's ImageScale: pictures in another size."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Scales pictures to a width and a height; 0 for one of them keeps the proportions."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"
    CROPS = ("disabled", "center")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        side = ("INT", {"default": 512, "min": 0, "max": MAX_SIDE, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "width": side,
                "height": side,
                "crop": (list(cls.CROPS),),
            }
        }

    def scale(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
        """IMAGE [B, H, W, C] → [B, height, width, C]; with ``crop`` its middle, in the new proportions."""
        rows, columns = image.shape[1:3]
        if width == 0 and height == 0:
            return (image,)
        width = width or max(1, round(columns * height / rows))
        height = height or max(1, round(rows * width / columns))
        if crop == "center":
            image = _middle(image, width / height)
        return (_resized(image, upscale_method, width, height),)


class ImageScaleBy:
    """ComfyUI's ImageScaleBy: pictures in a multiple of their size."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Scales pictures by a factor."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(METHODS),),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def scale(self, image: Tensor, upscale_method: str, scale_by: float) -> tuple[Tensor]:
        """IMAGE [B, H, W, C] → [B, H·scale_by, W·scale_by, C], the sides rounded."""
        height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
        return (_resized(image, upscale_method, width, height),)


def _resized(image: Tensor, method: str, width: int, height: int) -> Tensor:
    """IMAGE [B, H, W, C] → [B, height, width, C]."""
    if method == "lanczos":
        resized = [
            np.asarray(picture_of(each).resize((width, height), Image.Resampling.LANCZOS)) for each in image
        ]
        return torch.from_numpy(np.stack(resized).astype(np.float32) / 255.0).to(image)
    planes = rearrange(image, "b h w c -> b c h w")
    scaled = F.interpolate(planes, size=(height, width), mode=method)
    return rearrange(scaled, "b c h w -> b h w c")


def _middle(image: Tensor, aspect: float) -> Tensor:
    """The largest middle part [B, h, w, C] of that width to height."""
    rows, columns = image.shape[1:3]
    own = columns / rows
    # Half pixels are frequent, so that the order of ComfyUI's operations says to which side they are rounded.
    x = round((columns - columns * (aspect / own)) / 2) if own > aspect else 0
    y = round((rows - rows * (own / aspect)) / 2) if own < aspect else 0
    return image[:, y : rows - y, x : columns - x]
