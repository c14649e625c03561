"""The condition of an upsampler: a small picture, corrupted and brought to size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import make_schedule

_LEVELS = 1000  # timesteps of the schedule by which noise on large pictures is measured


def resize_condition(
    low: Tensor, size: tuple[int, int], mode: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
) -> Tensor:
    """[B, C, h, w] → [B, C, *size]: bicubic as in Karlo, bilinear as in GLIDE, both with antialias, or the
    nearest pixel as in DALLE2-pytorch."""
    return F.interpolate(low, size, mode=mode, antialias=mode != "nearest")


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


def corrupt_large(large: Tensor, level: float, noise: Tensor) -> Tensor:
    """√ᾱ_t·x + √(1 − ᾱ_t)·noise at t = 1000·level of DDPM's linear schedule (Imagen 2205.11487, as in
    DALLE2-pytorch's ``LowresConditioner``).

    Applied to the picture that was brought to size.

    Args:
        large: [B, C, H, W] in −1..1.
        level: 0..1.
        noise: like ``large``, standard normal.
    """
    schedule = make_schedule("linear", _LEVELS)
    step = min(round(_LEVELS * level), _LEVELS - 1)
    signal = schedule.sqrt_alphas_cumprod[step].item()
    return signal * large + schedule.sqrt_one_minus_alphas_cumprod[step].item() * noise
