"""Low-rank changes of weights (LoRA, 2106.09685): W + strength · Σ scale · up · down, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factors:
    """Of one layer: ``down`` [r, I, …] and ``up`` [O, r, …], for a convolution with a 1×1 ``up``.

    Attributes:
        scale: what their product is multiplied by: alpha / r, or 1 where no alpha is known.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that they change."""
        return (self.up.shape[0], *self.down.shape[1:])

    def product(self, device: torch.device) -> Tensor:
        """scale · up · down in float32, in the shape of the weight."""
        up, down = (factor.to(device, torch.float32).flatten(1) for factor in (self.up, self.down))
        return (self.scale * (up @ down)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class WeightChange:
    """Change of one weight of a network, from factors for the layers that it was joined of.

    Attributes:
        parts: of each of those layers, in order; None where one is not changed. At least one is.
        transform: what makes the weight of theirs, a linear function; None takes the single one.
    """

    parts: tuple[Factors | None, ...]
    transform: Callable[..., Tensor] | None = None

    def total(self, device: torch.device | str) -> Tensor:
        """In float32, in the shape of the weight."""
        device = torch.device(device)
        some = next(part for part in self.parts if part is not None)
        products = [
            torch.zeros(some.shape, device=device) if part is None else part.product(device)
            for part in self.parts
        ]
        return products[0] if self.transform is None else self.transform(*products)


@dataclass(frozen=True, eq=False)
class Lora:
    """What a LoRA changes in one network.

    Attributes:
        changes: by the name of the weight in the network.
        source: the file, for messages.
    """

    changes: Mapping[str, WeightChange]
    source: str = ""
