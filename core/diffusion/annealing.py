"""Condition annealing (CADS, Sadat et al. 2310.17347): a condition is noise where the sample still is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .schedule import Schedule

NOISE = 0.25
"""s, how much noise takes the place of what is left out; the paper's for captions."""
_ALONE = 4
"""Until this part of the way the condition is noise alone: of the paper's τ, 1 − 0.6 and 1 − 0.9."""


def annealing(schedule: Schedule, until: float) -> Tensor:
    """γ of each index, [S] float64: how much of the condition is there (2310.17347, section 3).

    With the share p of the way from noise to the sample that is gone, γ is 0 up to p = until/4, 1 from
    p = until on, and even in between. The paper's τ_1 = 0.6 and τ_2 = 0.9 are ``until`` 0.4.

    Args:
        until: 0 to 1; 0 is 1 everywhere.
    """
    gone = 1 - schedule.timesteps.double() / max(schedule.num_train_timesteps - 1, 1)
    if until == 0:
        return torch.ones_like(gone)
    return ((gone - until / _ALONE) / (until - until / _ALONE)).clamp(0, 1)


def annealed(condition: Tensor, noise: Tensor, gamma: float) -> Tensor:
    """√γ·y + s·√(1−γ)·n, brought to mean and standard deviation of y (section 3, ψ = 1); [B, D] by rows.

    Args:
        condition: y, of about unit variance.
        noise: n, standard normal.
    """
    mixed = math.sqrt(gamma) * condition + NOISE * math.sqrt(1 - gamma) * noise
    mean, std = condition.mean(dim=-1, keepdim=True), condition.std(dim=-1, correction=0, keepdim=True)
    own = mixed.std(dim=-1, correction=0, keepdim=True).clamp(min=1e-12)
    return (mixed - mixed.mean(dim=-1, keepdim=True)) / own * std + mean
