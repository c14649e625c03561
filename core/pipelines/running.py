"""What the pipelines share: where a network runs, how many rows a batch has, and checks of pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def device_and_dtype(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating-point type of a network's parameters."""
    parameter = next(network.parameters())
    return parameter.device, parameter.dtype


def common_batch(**sizes: int) -> int:
    """The batch size that all inputs, by name, agree on: each has it, or 1 row to repeat.

    Raises:
        ValueError: an empty input, or two different numbers of rows; names the inputs.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")
    batch = max(sizes.values())
    if any(size not in (1, batch) for size in sizes.values()):
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"batch sizes do not match: {found}. Each must be 1 or the same number")
    return batch


def to_batch(rows: Tensor, batch: int) -> Tensor:
    """[1 or B, …] → [B, …]."""
    return rows if rows.shape[0] == batch else rows.expand(batch, *rows.shape[1:])


def require_pictures(images: Tensor, name: str = "images") -> None:
    """Raise a ValueError unless this is a non-empty batch [B, 3, H, W] of floating-point pictures."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"{name}: found shape {tuple(images.shape)}, expected [batch, 3, height, width]")
    if not images.is_floating_point():
        raise ValueError(f"{name}: found {images.dtype}, expected floating-point values in 0..1")
