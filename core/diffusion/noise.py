"""Noise that belongs to an image, not to a batch: one CPU generator per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# torch seeds are 64 bit; the seed after the last is the first.
SEEDS = 2**64


def image_generators(seed: int, batch: int) -> list[torch.Generator]:
    """CPU generators seeded seed, seed+1, …: image i of a batch is what seed+i gives alone, on any device."""
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
