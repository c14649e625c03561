"""Which process of a distributed run this is, and what contrastive training shares between processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor) -> Tensor:
    """[B, D] of every process → [world·B, D], with gradients; as it is without a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows), dim=0)
