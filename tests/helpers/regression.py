"""A recipe of a few numbers for the tests of the training loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from unclip.core.data.draws import draw_normal
from unclip.core.training.loop import LoopReport, train
from unclip.core.training.recipe import Recipe
from unclip.core.training.settings import LoopConfig


class Regression(Recipe):
    """Learns a linear map from noisy samples of it; remembers what the loop gave it."""

    def __init__(self, width: int = 3, data_matters: bool = True) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 2), nn.LayerNorm(2))
        self.network.register_buffer("steps_seen", torch.zeros(()))
        self.width, self.data_matters = width, data_matters
        self.steps: list[int] = []
        self.noise: list[float] = []
        self.exported: list[dict[str, Tensor]] = []

    def batches(self, step: int) -> Tensor:
        self.steps.append(step)
        return torch.randn(8, self.width, generator=torch.Generator().manual_seed(step))

    def prepare(self, batch: Tensor) -> Tensor:
        return batch

    def held_out(self):
        return lambda step: torch.randn(8, self.width, generator=torch.Generator().manual_seed(1000 + step))

    def loss(self, network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        noise = draw_normal((len(batch), 2), generator)
        self.noise.append(noise[0, 0].item())
        target = batch[:, :2].cumsum(dim=1) + 0.1 * noise
        loss = (network(batch) - target).square().mean()
        return loss if self.data_matters else 0 * loss

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        self.exported.append(state)


class Killed(Exception):  # noqa: N818
    pass


def kill_at(step: int):
    def on_step(report: LoopReport) -> None:
        if report.step == step:
            raise Killed

    return on_step


def loop_settings(**changes) -> LoopConfig:
    settings = {
        "steps": 12,
        "batch_size": 8,
        "learning_rate": 0.05,
        "warmup": 3,
        "ema_decay": 0.9,
        "precision": "no",
        "compile": False,
        "checkpoint_every": 4,
        "log_every": 1,
        "log_with": (),
    }
    return LoopConfig(**{**settings, **changes})


def run(folder: Path, loop: LoopConfig, on_step=None, recipe: Regression | None = None) -> Regression:
    recipe = recipe or Regression()
    train(recipe, loop, folder, on_step, cpu=True)
    return recipe


def weights(recipe: Regression) -> dict[str, Tensor]:
    return {**recipe.exported[0], **{f"last {k}": v for k, v in recipe.network.state_dict().items()}}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
