"""SVG to pixels, with resvg."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .processors import usable_processors

LARGEST_SIDE = 4096
"""Pixels: beyond, resvg ends the process where memory is short, and no message is left."""


def render_svg(svg: str, size: int) -> np.ndarray:
    """Rasterise to [size, size, 4] uint8 RGBA, straight alpha; other aspect ratios are centred.

    Raises:
        ValueError: more than LARGEST_SIDE.
    """
    if size > LARGEST_SIDE:
        raise ValueError(
            f"image_size is {size}, and pictograms are drawn with at most {LARGEST_SIDE} pixels a side; "
            f"choose a smaller one"
        )
    import resvg_py  # an extra: only data building and training need it

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if image.height > size:
        width = max(1, round(image.width * size / image.height))
        image = image.resize((width, size), Image.Resampling.LANCZOS)
    if image.size != (size, size):
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image)


def render_all(svgs: Iterable[str], size: int) -> Tensor:
    """[N, 4, size, size] uint8 RGBA of N SVG texts."""
    with ThreadPoolExecutor(usable_processors()) as pool:  # resvg releases the interpreter lock
        pixels = np.stack(list(pool.map(lambda svg: render_svg(svg, size), svgs)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def composite(rgba: Tensor, top: Tensor, bottom: Tensor, position: Tensor | None = None) -> Tensor:
    """Lay pictures over a vertical gradient.

    Args:
        rgba: [B, 4, H, W] uint8, straight alpha.
        top, bottom: [B, 3] colours at the upper and lower edge, 0..255.
        position: [H] in 0..1, where in the gradient each row lies; None for all of it.

    Returns:
        [B, 3, H, W] float32, 0..1.
    """
    alpha = rgba[:, 3:].float() / 255
    background = _gradient(top, bottom, rgba.shape[-2], position)
    return (rgba[:, :3].float() * alpha + background * (1 - alpha)) / 255


def composite_premultiplied(rgba: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """As ``composite``, of pictures [B, 4, H, W] in 0..1 whose colours are multiplied by their alpha."""
    return rgba[:, :3] + _gradient(top, bottom, rgba.shape[-2]) / 255 * (1 - rgba[:, 3:])


def _gradient(top: Tensor, bottom: Tensor, height: int, position: Tensor | None = None) -> Tensor:
    """[B, 3, H, 1]."""
    if position is None:
        position = torch.linspace(0, 1, height, device=top.device)
    ends = (colour.float()[:, :, None, None] for colour in (top, bottom))
    return torch.lerp(*ends, position.view(1, 1, -1, 1))
