"""What turns gradients into steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

OptimizerName = Literal["adamw", "muon"]


def make_optimizer(
    network: nn.Module,
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    """AdamW, or Muon for matrices and kernels with AdamW for the rest.

    Muon (timm's, with the scale of 2502.16982) makes steps about as long as AdamW's at a learning rate,
    so the two share their settings. It learns the many concepts of a set of pictograms much sooner.

    Args:
        weight_decay: on matrices and kernels; none on gains, biases and single vectors.
        betas: AdamW's, for both.
    """
    groups = _parameter_groups(network, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    from .muon import BatchedMuon  # with timm, an extra

    return BatchedMuon(groups, lr=learning_rate, betas=betas, nesterov=True)


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [value for value in network.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]
