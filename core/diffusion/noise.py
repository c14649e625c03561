"""Noise that belongs to an image, not to a batch: one CPU generator per row."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from ..config import require_whole

# torch seeds are 64 bit; the seed after the last is the first.
SEEDS = 2**64


def require_seed(seed: SupportsIndex) -> int:
    """A seed as Python's int: NumPy's whole numbers and torch's scalars are others and may overflow.

    Raises:
        ValueError: no whole number.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed: found {seed!r}, expected a whole number") from None


def image_generators(seed: SupportsIndex, batch: int) -> list[torch.Generator]:
    """CPU generators seeded seed, seed+1, …: image i of a batch is what seed+i gives alone, on any device."""
    seed = require_seed(seed)
    require_whole(batch_size=batch)
    if batch < 1:
        raise ValueError(f"batch_size: found {batch}, expected at least 1")
    return [torch.Generator("cpu").manual_seed((seed + i) % SEEDS) for i in range(batch)]


def draw_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal [B, *shape] float32 on ``device``; row i is drawn on the CPU from generator i only."""
    if not generators:
        raise ValueError("generators: found none, expected one for each image")
    rows = [torch.randn(tuple(shape), generator=g, dtype=torch.float32, device="cpu") for g in generators]
    return torch.stack(rows).to(device)  # [B, *shape]
