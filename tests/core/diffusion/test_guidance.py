from __future__ import annotations

import pytest
import torch
from unclip.core.diffusion.denoiser import Prediction
from unclip.core.diffusion.guidance import GuidedDenoiser
from unclip.core.diffusion.schedule import make_schedule

from ...helpers.gaussian import example_gaussian

SCHEDULE = make_schedule("cosine", 1000).respace(11)  # timesteps 0, 100, 200, …, 999


class Branches:
    """Two known predictions, counting how often each denoiser is called."""

    def __init__(self, rows: int = 2) -> None:
        g = torch.Generator().manual_seed(0)
        self.cond = torch.randn(rows, 3, 4, 4, generator=g)
        self.null = 0.3 * torch.randn(rows, 3, 4, 4, generator=g)
        self.calls = {"conditional": 0, "both": 0}

    def conditional(self, x: torch.Tensor, step: int) -> Prediction:
        self.calls["conditional"] += 1
        return Prediction(self.cond, torch.full_like(self.cond, 5.0))

    def both(self, x: torch.Tensor, step: int) -> Prediction:
        self.calls["both"] += 1
        rows = len(self.cond)
        assert x.shape[0] == 2 * rows and torch.equal(x[:rows], x[rows:])
        log_variance = torch.cat([torch.full_like(self.cond, 5.0), torch.full_like(self.null, -5.0)])
        return Prediction(torch.cat([self.cond, self.null]), log_variance)

    def guided(self, scale: float, **options) -> GuidedDenoiser:
        return GuidedDenoiser(self.conditional, self.both, SCHEDULE, scale, **options)


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0, -1.0])
def test_guidance_extrapolates_from_the_null_prediction(scale: float) -> None:
    branches = Branches()
    prediction = branches.guided(scale)(torch.randn(2, 3, 4, 4), 5)
    assert torch.allclose(prediction.x0, (1 - scale) * branches.null + scale * branches.cond, atol=1e-6)
    assert (prediction.log_variance == 5.0).all()  # the conditional half
    assert branches.calls == {"conditional": 0, "both": 1}


def test_scale_one_needs_no_null_branch() -> None:
    branches = Branches()
    prediction = branches.guided(1.0)(torch.randn(2, 3, 4, 4), 5)
    assert torch.equal(prediction.x0, branches.cond)
    assert branches.calls == {"conditional": 1, "both": 0}


def test_the_interval_is_in_time_with_both_ends_included() -> None:
    branches = Branches()
    guided = branches.guided(3.0, interval=(0.2, 0.61))
    times = (SCHEDULE.timesteps / 999).tolist()
    expected = [0.2 <= time <= 0.61 for time in times]
    assert [guided.guides(step) for step in range(11)] == expected
    assert sum(expected) == 5  # timesteps 200 … 600, exactly 0.2002 … 0.6006
    for step in range(11):
        guided(torch.zeros(2, 3, 4, 4), step)
    assert branches.calls == {"conditional": 6, "both": 5}
    assert all(branches.guided(3.0).guides(step) for step in range(11))


def test_guiding_x0_is_guiding_the_noise() -> None:
    """ε̂ guided as in the paper, then turned into x̂_0, is x̂_0 guided."""
    gaussian, step = example_gaussian(), 6
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    signal = SCHEDULE.sqrt_alphas_cumprod[step].item()
    sigma = SCHEDULE.sqrt_one_minus_alphas_cumprod[step].item()
    eps_cond = gaussian.network(SCHEDULE, "eps")(x, step)
    eps_null = torch.tanh(x)
    reference = (x - sigma * (eps_null + 3 * (eps_cond - eps_null))) / signal
    x0 = torch.cat([(x - sigma * eps_cond) / signal, (x - sigma * eps_null) / signal])
    guided = GuidedDenoiser(None, lambda x, step: Prediction(x0), SCHEDULE, 3.0)(x, step)
    assert (guided.x0 - reference).abs().max() <= 1e-5
    assert guided.log_variance is None


def test_rescale_restores_the_spread_of_the_conditional_prediction() -> None:
    branches, x = Branches(), torch.zeros(2, 3, 4, 4)
    plain = branches.guided(6.0)(x, 5).x0
    full = branches.guided(6.0, rescale=1.0)(x, 5).x0
    half = branches.guided(6.0, rescale=0.5)(x, 5).x0
    assert torch.allclose(full.flatten(1).std(dim=1), branches.cond.flatten(1).std(dim=1), rtol=1e-5)
    assert (plain.flatten(1).std(dim=1) > 3 * branches.cond.flatten(1).std(dim=1)).all()
    assert torch.allclose(half, (plain + full) / 2, atol=1e-5)


def test_rescale_survives_constant_images() -> None:
    flat = lambda x, step: Prediction(torch.zeros(2, 1))  # noqa: E731
    guided = GuidedDenoiser(flat, flat, SCHEDULE, 2.0, rescale=1.0)
    assert torch.isfinite(guided(torch.zeros(1, 1), 5).x0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "guidance_scale: found nan"),
        ({"scale": 2.0, "interval": (0.8, 0.2)}, r"guidance_interval: found 0.8…0.2"),
        ({"scale": 2.0, "interval": (-0.1, 1.0)}, "guidance_interval"),
        ({"scale": 2.0, "rescale": 1.5}, "guidance_rescale: found 1.5"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Branches().guided(**options)
