"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .sharding import cut_like, local, whole_state


class ExponentialMovingAverage:
    """A shadow copy of a network's parameters in float32, in shards where they are.

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
        parameters = [local(value.detach()).float() for _, value in network.named_parameters()]
        torch._foreach_lerp_([local(value) for value in self.shadow.values()], parameters, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.shadow.items():
            local(value).copy_(local(cut_like(state[name], value)))

    def averaged_state(self, network: nn.Module, keep: bool = True) -> dict[str, Tensor]:
        """The network's whole state dict, its parameters replaced by their averages.

        All processes have to call it where the weights are in shards.

        Args:
            keep: False for a process that does not need it.
        """
        state = whole_state({**network.state_dict(), **self.shadow}, keep)
        return {name: value.detach().clone() for name, value in state.items()}
