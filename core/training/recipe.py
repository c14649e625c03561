"""What one stage adds to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import PictogramBatches
from ..stages import ClipStage, Stage


class Recipe(ABC):
    """The data, the loss and the export of a stage.

    Attributes:
        network: what is trained.
        stage_network: what of it the finished stage holds, all or a part.
        batches: this process's rows of a step, a pure function of it. Worker processes may be given it, or
            its ``draw`` where it paints on a device.
        clip_stage: the frozen model that is learnt from, where there is one.
        whole_batch_loss: the loss compares the rows of a batch with each other, so that one taken in parts
            goes through ``part_losses``.
    """

    network: nn.Module
    stage_network: nn.Module
    batches: Callable[[int], Any]
    clip_stage: ClipStage | None = None
    whole_batch_loss = False

    def fit(self) -> None:
        """Fit to the data, before the first step, what checkpoints hold though it is not trained.

        It is left out where weights that are there bring it along.
        """
        return

    @abstractmethod
    def prepare(self, batch: Any) -> Any:
        """What ``batches`` gave as (tuples of) tensors whose first axis are rows, or None."""

    def batch(self, step: int) -> Any:
        """The data of a step, ready for ``loss``."""
        return self.prepare(self.batches(step))

    def paint_on(self, device: torch.device) -> None:
        """Make the pictures of ``batches`` on a device, as far as they can be made there."""
        if isinstance(self.batches, PictogramBatches):
            self.batches.to(device)

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        """Scalar loss, a mean over rows; ``network`` is the compiled and wrapped form of ``self.network``."""

    def part_losses(
        self, network: nn.Module, parts: Sequence[Any], device: torch.device
    ) -> Callable[[int], Tensor]:
        """Where ``whole_batch_loss`` is set: a first look at all parts of this process's batch.

        Returns:
            The loss of a part by its number. The mean over parts is the loss of the whole batch, and so is
            its gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} compares no rows: each part has its own loss")

    @abstractmethod
    def held_out(self) -> Callable[[int], Any]:
        """Batches like ``batches`` of what is kept out of training.

        Raises:
            ValueError: nothing is.
        """

    def stage(self) -> Stage | None:
        """The stage with the network as it is now; None where it makes no pictures."""
        return None

    def read_weights(self, path: Path) -> dict[str, Tensor]:
        """The weights in the file of a finished stage, for ``stage_network``.

        Raises:
            ValueError: no checkpoint of such a stage.
        """
        from ..formats.load import load_any_stage
        from .frozen_clip import stage_file

        return load_any_stage(stage_file(path)).network.state_dict()

    @abstractmethod
    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the finished stage from the averaged weights."""
