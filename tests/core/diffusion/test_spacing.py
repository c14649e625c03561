from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from unclip.core.diffusion.schedule import Schedule, make_schedule, schedule_from_betas
from unclip.core.diffusion.spacing import HIGHEST_SIGMA, SPACINGS, _beta_quantiles
from unclip.core.diffusion.spec import Spacing

SCHEDULES = {
    "cosine": make_schedule("cosine", 1000),
    "linear": make_schedule("linear", 1000),
    "latent": schedule_from_betas(torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)),
    "no signal at its end": schedule_from_betas([*torch.linspace(0.001, 0.2, 99).tolist(), 1.0]),
}


def lambdas(schedule: Schedule) -> torch.Tensor:
    return 0.5 * schedule.snr.log()


def test_a_spec_may_name_any_of_them() -> None:
    assert set(SPACINGS) == set(get_args(Spacing))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_as_many_different_timesteps_as_asked_for(spacing: str, schedule: str) -> None:
    full = SCHEDULES[schedule]
    for steps in (1, 2, 3, 4, 7, 25, 50, len(full) - 1, len(full)):
        respaced = full.respace(steps, spacing=spacing)  # a Schedule refuses what is not ascending
        assert len(respaced) == steps
        # All sampling starts at pure noise, but for strides that are known to leave it out.
        if spacing != "leading" or steps in (1, len(full)):
            assert respaced.timesteps[-1] == full.timesteps[-1]
        if spacing not in ("trailing", "beta") and steps > 1:
            assert respaced.timesteps[0] == full.timesteps[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("spacing", "of"), [("log_snr", lambda value: value), ("karras", lambda value: (-value / 7).exp())]
)
def test_strides_are_even_in_what_the_spacing_is_named_for(spacing: str, of, schedule: str) -> None:
    """As far as trained timesteps are dense enough, and but for the first one, which begins at pure noise."""
    full, steps = SCHEDULES[schedule], 8
    exact = of(lambdas(full))
    ends = of(torch.tensor(-math.log(HIGHEST_SIGMA), dtype=torch.float64)), exact[0]
    lowest = ends[0] if lambdas(full)[-1] < -math.log(HIGHEST_SIGMA) else exact[-1]
    wanted = torch.linspace(float(ends[1]), float(lowest), steps, dtype=torch.float64)
    found = of(lambdas(full.respace(steps, spacing=spacing)))
    dense = exact[exact.isfinite()].diff().abs()
    for place in range(steps - 1):
        nearest = (exact - wanted[place]).abs().argmin().clamp(1, len(dense) - 1)
        room = dense[nearest - 1 : nearest + 1].max() + 1e-9
        # Where two fall together one is moved, by a timestep for each.
        assert (found[place] - wanted[place]).abs() <= (2 * steps * room if place < 2 else room), place


@pytest.mark.parametrize("steps", [5, 10, 25])
def test_karras_is_diffusers(steps: int) -> None:
    """On a schedule whose σ end below 80: there the noise that has nothing to show is cut off, on purpose."""
    theirs = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", use_karras_sigmas=True
    )
    theirs.set_timesteps(steps)
    ours = SCHEDULES["latent"].respace(steps, spacing="karras")
    # They round to the nearest timestep in t, we in log σ, and ours are different ones.
    assert (ours.timesteps.flip(0) - theirs.timesteps).abs().max() <= 1
    even = SCHEDULES["latent"].respace(steps)
    assert (even.timesteps.flip(0) - theirs.timesteps).abs().max() > 50


def test_beta_quantiles_are_those_of_the_distribution() -> None:
    """Against the distribution itself, drawn by torch, and its symmetry."""
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.8, 1.0], dtype=torch.float64)
    found = _beta_quantiles(quantiles, 0.6)
    torch.manual_seed(0)
    drawn = torch.distributions.Beta(torch.tensor(0.6).double(), torch.tensor(0.6).double())
    shares = (drawn.sample((400_000,))[:, None] <= found).double().mean(dim=0)
    assert (shares - quantiles).abs().max() < 0.004  # five standard errors
    assert found[2].item() == pytest.approx(0.5, abs=1e-6) and found[4].item() == pytest.approx(1, abs=1e-6)
    mirrored = _beta_quantiles(1 - quantiles[:2], 0.6)
    assert torch.allclose(found[:2], 1 - mirrored, atol=1e-6)
    # α = β = ½ is the arcsine distribution: sin²(π·q/2).
    assert torch.allclose(_beta_quantiles(quantiles, 0.5), (math.pi / 2 * quantiles).sin() ** 2, atol=1e-6)


def test_beta_is_dense_at_both_ends() -> None:
    strides = SCHEDULES["cosine"].respace(20, spacing="beta").timesteps.diff()
    assert strides[0] < 0.75 * strides.max() and strides[-1] < 0.75 * strides.max()
    # ComfyUI's `beta_scheduler` for 5 of 1000 timesteps, of which it leaves the lowest quantile, 0, out.
    found = SCHEDULES["cosine"].respace(5, spacing="beta").timesteps
    expected = (999 * _beta_quantiles(torch.arange(1, 6).double() / 5, 0.6)).round().long()
    assert found.tolist() == expected.tolist()
