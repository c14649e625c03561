"""Which process of a distributed run this is, and what contrastive training shares between processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Process:
    """One of ``world`` training processes."""

    rank: int = 0
    world: int = 1


def gather_rows(rows: Tensor) -> Tensor:
    """[B, D] of every process → [world·B, D], with gradients; as it is without a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows), dim=0)
