from __future__ import annotations

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor
from unclip.core.diffusion.denoiser import ClampedDenoiser, Denoiser, NormedDenoiser, Prediction
from unclip.core.diffusion.guidance import GUIDANCES, GuidedDenoiser, PairedDenoiser, Projection
from unclip.core.diffusion.inversion import invert_ddim
from unclip.core.diffusion.noise import image_generators
from unclip.core.diffusion.regional import RegionalDenoiser
from unclip.core.diffusion.samplers import SamplerStep, sample_ddim
from unclip.core.diffusion.sampling import SAMPLERS, sample
from unclip.core.diffusion.schedule import make_schedule
from unclip.core.diffusion.spec import DiffusionSpec

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


# --- other guidance -----------------------------------------------------------------------------------


def two_gaussians(schedule, scale: float, name: str) -> Denoiser:
    """Guidance between two exact denoisers, of narrower data and of all data."""
    data = example_gaussian()
    narrow = type(data)(mean=data.mean + 0.3, std=0.6 * data.std, basis=data.basis)

    def both(x: Tensor, step: int) -> Prediction:
        above, below = x.chunk(2)
        parts = [narrow.denoiser(schedule)(above, step), data.denoiser(schedule)(below, step)]
        return Prediction(torch.cat([part.x0 for part in parts]))

    return GuidedDenoiser(narrow.denoiser(schedule), both, schedule, scale, name=name)


def test_cfg_pp_adds_the_noise_of_the_null_prediction_again() -> None:
    """2406.08070, algorithm 1: x' = √ᾱ'·x̂_0^λ + √(1−ᾱ')·ε̂_∅."""
    branches, states = Branches(), list[SamplerStep]()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    out = sample_ddim(branches.guided(0.6, name="cfg_pp"), x, SCHEDULE, callback=states.append)
    guided = branches.null + 0.6 * (branches.cond - branches.null)
    expected = x
    for index in reversed(range(len(SCHEDULE))):
        here, there = SCHEDULE.alphas_cumprod[index].item(), SCHEDULE.alphas_cumprod_prev[index].item()
        eps = (expected - math.sqrt(here) * branches.null) / math.sqrt(1 - here)
        expected = math.sqrt(there) * guided + math.sqrt(1 - there) * eps
        assert (states[len(SCHEDULE) - 1 - index].x - expected).abs().max() < 1e-4
    assert torch.allclose(out, guided, atol=1e-5)
    plain = list[SamplerStep]()
    sample_ddim(branches.guided(0.6), x, SCHEDULE, callback=plain.append)
    assert (plain[5].x - states[5].x).abs().max() > 1e-2


def test_cfg_pp_needs_the_null_branch_at_scale_one_too() -> None:
    branches = Branches()
    prediction = branches.guided(1.0, name="cfg_pp")(torch.randn(2, 3, 4, 4), 5)
    assert branches.calls == {"conditional": 0, "both": 1}
    assert torch.allclose(prediction.x0, branches.cond, atol=1e-6)
    assert torch.equal(prediction.renoise, branches.null)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_cfg_pp(name: str) -> None:
    """At scale 0 it is the null prediction's own sample; above, another one than that of plain guidance."""
    schedule = make_schedule("linear", 1000).respace(10, spacing="trailing")
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))

    def run(denoiser: Denoiser) -> Tensor:
        spec, generators = DiffusionSpec(), image_generators(0, 2)
        return sample(name, denoiser, x, schedule, spec=spec, generators=generators)

    null = run(example_gaussian().denoiser(schedule))
    assert (run(two_gaussians(schedule, 0.0, "cfg_pp")) - null).abs().max() < 1e-4
    found = run(two_gaussians(schedule, 0.6, "cfg_pp"))
    assert torch.isfinite(found).all()
    assert (found - run(two_gaussians(schedule, 0.6, "cfg"))).abs().max() > 1e-2


def test_cfg_pp_is_inverted(monkeypatch) -> None:
    """2406.08070, algorithm 2: of the two x̂_0, a step backwards swaps picture and noise."""
    x = example_gaussian().sample((20,), torch.Generator().manual_seed(0)).float()
    schedule = make_schedule("cosine", 1000).respace(25)

    def error(**options) -> float:
        denoiser = two_gaussians(schedule, 0.6, "cfg_pp")
        noise = invert_ddim(denoiser, x, schedule, **options)
        return (sample_ddim(denoiser, noise, schedule) - x).square().mean().sqrt().item()

    errors = [error(), error(refinements=1), error(refinements=4)]
    assert 0.1 < errors[0] < 0.4
    assert errors[0] > 5 * errors[1] > 50 * errors[2]
    monkeypatch.setattr("unclip.core.diffusion.inversion.turned", lambda prediction: prediction)
    assert error() > 3 * errors[0]


def test_apg_is_diffusers() -> None:
    """Momentum, size and projection, over the steps of a sample."""
    g = torch.Generator().manual_seed(0)
    ours, theirs = Projection(5.0, size=0.2), MomentumBuffer(-0.5)
    plain = Projection(5.0, size=1e9, momentum=0.0, parallel=1.0)
    for step in (3, 2, 1, 0):
        conditional, other = torch.randn(2, 2, 3, 4, 4, generator=g)
        expected = normalized_guidance(
            conditional, other, 4.0, theirs, 0.0, 0.2 * math.sqrt(48), use_original_formulation=True
        )
        found, renoise = ours(conditional, other, step)
        assert (found - expected).abs().max() < 1e-5 and renoise is None
        assert torch.allclose(
            plain(conditional, other, step)[0], other + 5 * (conditional - other), atol=1e-4
        )
        assert (found - (other + 5 * (conditional - other))).abs().max() > 0.1


def test_apg_counts_a_step_once_and_begins_anew() -> None:
    conditional, other = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    projection = Projection(3.0)
    first, _ = projection(conditional, other, 5)
    second, _ = projection(conditional, 0.5 * other, 4)
    assert torch.equal(projection(conditional, 0.5 * other, 4)[0], second)  # a solver that looks ahead
    fresh, _ = Projection(3.0)(conditional, 0.5 * other, 4)
    assert not torch.allclose(second, fresh)
    assert torch.equal(projection(conditional, other, 5)[0], first)  # another sample


def test_a_pair_is_two_denoisers_in_one() -> None:
    branches = Branches()
    first, second = branches.conditional, lambda x, step: Prediction(branches.null)
    guided = GuidedDenoiser(first, PairedDenoiser(first, second), SCHEDULE, 2.0, name="autoguidance")
    prediction = guided(torch.randn(2, 3, 4, 4), 5)
    assert torch.allclose(prediction.x0, 2 * branches.cond - branches.null, atol=1e-6)
    assert (prediction.log_variance == 5.0).all()


def test_what_wraps_guidance_keeps_the_noise_to_add_again() -> None:
    branches, x = Branches(), torch.randn(2, 3, 4, 4)
    guided = branches.guided(3.0, name="cfg_pp")
    clamped = ClampedDenoiser(guided, 0.1)(x, 5)
    assert torch.equal(clamped.renoise, branches.null.clamp(-0.1, 0.1))
    normed = NormedDenoiser(branches.guided(0.0, name="cfg_pp"), 2.0)(x, 5)
    assert torch.equal(normed.renoise, normed.x0)  # the null prediction alone adds its own noise again
    half = torch.full((1, 1, 1, 1), 0.5)
    regional = RegionalDenoiser([guided, branches.guided(3.0)], [half, half])(x, 5)
    plain = 3 * branches.cond - 2 * branches.null
    assert torch.allclose(regional.renoise, 0.5 * branches.null + 0.5 * plain, atol=1e-5)


def test_unknown_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match=f"guidance: found 'best', expected one of {', '.join(GUIDANCES)}"):
        Branches().guided(2.0, name="best")
