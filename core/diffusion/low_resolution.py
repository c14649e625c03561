"""The condition of an upsampler: a small picture, corrupted and brought to size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_condition(
    low: Tensor, size: tuple[int, int], mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """[B, C, h, w] → [B, C, *size], with antialias: bicubic as in Karlo, bilinear as in GLIDE."""
    return F.interpolate(low, size, mode=mode, antialias=True)


def quantise(low: Tensor) -> Tensor:
    """Values in −1..1 rounded to 8 bits: GLIDE's upsampler was trained on pictures from files."""
    return ((low + 1) * 127.5).round() / 127.5 - 1


def corrupt(low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """√(1 − s²)·low + s·noise: noise-conditioning augmentation (Cascaded Diffusion 2106.15282, section 4.2).

    Applied to the small picture, before it is resized.

    Args:
        low: [B, C, h, w] in −1..1.
        level: [B], s in 0..1.
        noise: like ``low``, standard normal.
    """
    s = level.view(-1, 1, 1, 1)
    return torch.sqrt(1 - s**2) * low + s * noise
