"""Image embeddings to which a background adds the same whatever lies over it, learnt from nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import POSITIVE, Range, require_ranges


@dataclass(frozen=True)
class TwinsConfig:
    """How a CLIP model learns from pictures that it is shown over two backgrounds.

    Attributes:
        weight: of :func:`interaction` beside the contrastive loss.
        block: so many rows in a row share a pair of backgrounds; divides ``loop.batch_size``.
        ridge: in units of the mean variance of the embeddings; components far below it count less.
    """

    weight: float = 1.0
    block: int = 16
    ridge: float = 0.01

    def __post_init__(self) -> None:
        require_ranges(self, "twins", weight=POSITIVE, block=Range(2), ridge=POSITIVE)


def interaction(first: Tensor, second: Tensor, block: int, ridge: float) -> Tensor:
    """How much pictures and backgrounds mix in embeddings, against how much pictures differ.

    Over pictures p and two backgrounds, an embedding is a mean, a part of the picture, a part of the
    background, and a rest that belongs to both together (two-way analysis of variance). The loss is
    tr((S + ridge)⁻¹ W) / D: S the covariance of the pictures' parts and W that of the rests, so that all
    components count alike, those of much variance and those of little. A contrastive loss alone lets the rest
    grow as large as the pictures' part in the components that tell shapes; what learns from the embeddings
    then has to learn every picture anew on every background.

    Args:
        first, second: [B, D], embeddings of the same pictures; within each ``block`` rows over one background
            in the first and over another in the second.

    Returns:
        A scalar: 0 where each background adds the same to every picture, about 4 where the embedding of a
        picture on one background tells nothing of that on another.
    """
    with torch.autocast(first.device.type, enabled=False):
        one, other = (rows.float().unflatten(0, (-1, block)) for rows in (first, second))  # [B/n, n, D]
        rest, middle = (_centred(rows) for rows in (one - other, (one + other) / 2))  # [B, D]
        count, dim = middle.shape
        spread = middle.T @ middle / count  # [D, D]
        mean_variance = spread.diagonal().mean().detach()
        spread = spread + ridge * mean_variance * torch.eye(dim, device=spread.device)
        return torch.linalg.solve(spread, rest.T @ rest / count).diagonal().sum() / dim


def _centred(blocks: Tensor) -> Tensor:
    """[N, n, D] → [N·n, D] without the mean of each block."""
    return (blocks - blocks.mean(dim=1, keepdim=True)).flatten(0, 1)
