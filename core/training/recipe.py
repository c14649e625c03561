"""What one stage adds to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Recipe:
    """The data, the loss and the export of a stage.

    Attributes:
        network: what is trained.
        stage_network: what of it the finished stage holds, all or a part.
        batches: this process's rows of a step, on the CPU: a pure function of the step, which worker
            processes may be given.
        whole_batch_loss: the loss compares the rows of a batch with each other, so that it cannot be taken
            in parts.
    """

    network: nn.Module
    stage_network: nn.Module
    batches: Callable[[int], Any]
    whole_batch_loss = False

    def prepare(self, batch: Any) -> Any:
        """What ``batches`` gave as (tuples of) tensors whose first axis are rows, or None."""
        raise NotImplementedError

    def batch(self, step: int) -> Any:
        """The data of a step, ready for ``loss``."""
        return self.prepare(self.batches(step))

    def loss(self, network: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        """Scalar loss, a mean over rows; ``network`` is the compiled and wrapped form of ``self.network``."""
        raise NotImplementedError

    def held_out(self) -> Callable[[int], Any]:
        """Batches like ``batches`` of what is kept out of training.

        Raises:
            ValueError: nothing is.
        """
        raise NotImplementedError

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the finished stage from the averaged weights."""
        raise NotImplementedError
