"""The loss on what is kept out of training: the same rows and the same noise each time."""

from __future__ import annotations

import torch
from torch import nn

from ..data.draws import StepGenerator
from .parallel import mean_over_processes
from .recipe import Recipe
from .settings import LoopConfig

_SEED = 982_451_653  # noise that no step of training draws


class Validation:
    """A mean over ``validation_batches`` batches of held-out data, over all processes."""

    def __init__(self, recipe: Recipe, config: LoopConfig, rows: slice) -> None:
        """``rows``: this process's of the whole batch. Raises ValueError where nothing is held out."""
        self._recipe, self._config, self._rows = recipe, config, rows
        self._batches = recipe.held_out()

    def due(self, done: int) -> bool:
        """Whether it is time, after ``done`` steps."""
        every = self._config.validate_every
        return every is not None and (done % every == 0 or done == self._config.last_step)

    @torch.no_grad()
    def __call__(self, network: nn.Module, generator: StepGenerator) -> float:
        """The loss of ``network``, which is in all processes the same."""
        total = torch.zeros((), device=generator.device)
        for number in range(self._config.validation_batches):
            batch = self._recipe.prepare(self._batches(number))
            generator.start(_SEED + number, self._rows)
            total += self._recipe.loss(network, batch, generator).float()
        return mean_over_processes(total).item() / self._config.validation_batches
