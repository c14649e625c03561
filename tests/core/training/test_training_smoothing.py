"""Targets of the autoregressive prior that are spread over the buckets beside the right one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from unclip.core.training.recipes.ar_prior import spread
from unclip.core.training.stages import build_recipe

from ...helpers.stages import changed, stage_settings, write_tiny_clip
from ...helpers.training import write_tiny_shards


def test_targets_are_bells_around_the_codes() -> None:
    codes, deviation = torch.tensor([0, 5, 9]), 1.5
    shares = spread(codes, 10, deviation)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))
    assert torch.equal(shares.argmax(dim=1), codes)
    for off in (-4, -2, -1, 1, 2, 4):
        expected = math.exp(-0.5 * (off / deviation) ** 2)
        assert (shares[1, 5 + off] / shares[1, 5]).item() == pytest.approx(expected, rel=1e-5)
    assert shares[0, 0] > shares[1, 5]  # what would lie beyond the last bucket is shared by those there are


def test_the_prior_learns_from_the_targets_that_its_config_names(tmp_path: Path) -> None:
    settings = stage_settings(write_tiny_shards(tmp_path / "shards"), write_tiny_clip(tmp_path))["ar-prior"]
    losses = {}
    for smoothing in (0.0, 1e-3, 2.0):
        torch.manual_seed(0)
        _, recipe = build_recipe("ar-prior", changed(settings, "smoothing", smoothing), "test.toml")
        network = Sure(recipe.network.config.buckets)
        losses[smoothing] = recipe.loss(network, recipe.batch(3), torch.Generator().manual_seed(5))
    torch.testing.assert_close(losses[1e-3], losses[0.0])
    # Who is sure of the right bucket has no loss but for the targets beside it.
    assert losses[0.0] < 1e-3 < 0.1 < losses[2.0]


class Sure(torch.nn.Module):
    """Knows the codes, as a prior does not."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets

    def forward(self, codes: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        return 10.0 * torch.nn.functional.one_hot(codes, self.buckets)
