"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """A shadow copy of a network's parameters in float32.

    The decay is warmed up, min(decay, (1 + step) / (10 + step)), so that a short run is not held back by its
    random initialisation.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().float().clone() for name, value in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the network; ``step`` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [value.detach().float() for _, value in network.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), parameters, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.shadow.items():
            value.copy_(state[name])

    def averaged_state(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's whole state dict, its parameters replaced by their averages."""
        state = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return state | {name: value.clone() for name, value in self.shadow.items()}
