"""Samplers against closed forms: orders of convergence, and the law of what they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion import samplers
from unclip.core.diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.ode_solvers import sample_unipc
from unclip.core.diffusion.samplers import sample_ddim, sample_dpmpp_2m
from unclip.core.diffusion.sampling import SAMPLERS, sample
from unclip.core.diffusion.schedule import Schedule, make_schedule
from unclip.core.diffusion.sde_solvers import sample_sa_solver
from unclip.core.diffusion.spacing import SPACINGS
from unclip.core.diffusion.spec import DiffusionSpec

from ...helpers.gaussian import Gaussian, example_gaussian
from ...helpers.sampling import (
    bent_in_lambda,
    linear_map,
    linear_maps,
    mixture_denoiser,
    run,
    uniform_in_lambda,
)

GAUSSIAN = example_gaussian()
LINEAR = make_schedule("linear", 1000)
BENT = bent_in_lambda()
PREDICTIONS = ["eps", "x0", "v"]
# Least noise of the schedules of these tests: what is compared is what the exact denoiser makes of it.
FIRST = uniform_in_lambda(960).alphas_cumprod[0].item()


def isotropic(std: float) -> Gaussian:
    one = torch.ones(1, dtype=torch.float64)
    return Gaussian(mean=0.4 * one, std=std * one, basis=one[None])


# --- the law of the samples ---------------------------------------------------------------------------


def of_all_predictions(schedule: Schedule, **spec) -> Denoiser:
    """The exact denoiser, of three parts of the rows by networks that predict ε, x_0 and v."""
    denoisers = [GAUSSIAN.denoiser(schedule, prediction, **spec) for prediction in PREDICTIONS]

    def call(x: Tensor, step: int) -> Prediction:
        parts = zip(denoisers, x.chunk(len(denoisers)), strict=True)
        return Prediction(torch.cat([denoiser(part, step).x0 for denoiser, part in parts]))

    return call


def laws(monkeypatch, name: str, schedule: Schedule, eta: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """Mean [3] and covariance [3, 3] of a sampler's output by each of PREDICTIONS, without chance."""
    denoiser = of_all_predictions(schedule)

    def make(x: Tensor, generators: list[torch.Generator]) -> Tensor:
        return sample(name, denoiser, x, schedule, spec=DiffusionSpec(), generators=generators, eta=eta)

    # x_T and the noise of every step but the last
    return linear_maps(monkeypatch, make, len(schedule), len(PREDICTIONS))


def whitened(mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """How far a law is from the data's, along the data's own axes in its own standard deviations."""
    whiten = GAUSSIAN.basis / GAUSSIAN.std
    off = (whiten.T @ covariance @ whiten - torch.eye(3)).abs().max().item()
    return ((mean - GAUSSIAN.mean) @ whiten).abs().max().item(), off


@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in SAMPLERS), ("ddim", 0.5), ("ddim", 1.0)])
def test_samples_have_the_mean_and_covariance_of_the_data(monkeypatch, name: str, eta: float) -> None:
    found = [laws(monkeypatch, name, LINEAR.respace(steps), eta) for steps in (50, 250)]
    for coarse, fine in zip(*found, strict=True):
        mean, off = whitened(*fine)
        # What is left is the discretisation, and goes with it.
        assert mean < 0.02 and off < 0.1
        assert whitened(*coarse)[0] < 0.02 and whitened(*coarse)[1] > 2.5 * off


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_spacing_has_the_law_of_the_data(monkeypatch, name: str, spacing: str) -> None:
    """Of the schedule that networks have, with few steps."""
    found = [laws(monkeypatch, name, LINEAR.respace(steps, spacing=spacing)) for steps in (4, 60)]
    for rough, fine in zip(*found, strict=True):
        mean, off = whitened(*fine)
        assert mean < 0.02 and off < 0.3
        assert whitened(*rough)[1] > 0.5


def test_a_learned_variance_takes_the_place_of_the_noise_of_the_sde(monkeypatch) -> None:
    """A network that says log β̃ has the law of one that says nothing; one that says log β, another."""
    schedule = LINEAR.respace(30, spacing="log_snr")

    def covariance(name: str, output: float) -> Tensor:
        exact = GAUSSIAN.network(schedule, "x0")
        spec = DiffusionSpec(prediction="x0", variance="learned_range")

        def network(x: Tensor, step: int) -> Tensor:
            return torch.cat([exact(x, step), torch.full_like(x, output)], dim=1)

        def make(x: Tensor, generators: list[torch.Generator]) -> Tensor:
            denoiser = NetworkDenoiser(network, schedule, spec)
            return sample(name, denoiser, x, schedule, spec=spec, generators=generators)

        return linear_map(monkeypatch, make, len(schedule))[1]

    for name in ("euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver"):
        _, plain = laws(monkeypatch, name, schedule)[1]
        assert (covariance(name, -1.0) - plain).abs().max() < 1e-5, name
        assert (covariance(name, 1.0) - plain).abs().max() > 1e-2, name


def test_noise_in_all_of_the_way_or_in_none_of_it_has_the_same_law(monkeypatch) -> None:
    """SA-Solver: τ says how random it is, and not of what law."""
    schedule = LINEAR.respace(200, spacing="log_snr")
    found = []
    for tau in (0.0, 0.5, 1.0):

        def make(x: Tensor, generators: list[torch.Generator], tau: float = tau) -> Tensor:
            denoiser = GAUSSIAN.denoiser(schedule)
            return sample_sa_solver(denoiser, x, schedule, generators=generators, tau=lambda _: tau)

        mean, off = whitened(*linear_map(monkeypatch, make, len(schedule)))
        found.append(off)
        assert mean < 0.02 and off < 0.01
    assert len(set(found)) == 3


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range", "table"])
def test_ddpm_has_the_law_of_its_own_chain(variance: str) -> None:
    """Few steps, where the variances differ. With the exact denoiser the chain is linear, its law known."""
    std, steps, count = 0.5, 6, 100_000
    gaussian, schedule = isotropic(std), make_schedule("cosine", 1000).respace(6)
    table = 0.3 * schedule.posterior_variance + 0.7 * schedule.betas
    log_mean = (0.5 * (schedule.posterior_variance.log() + schedule.betas.log())).exp()
    std2 = {
        "fixed_small": schedule.posterior_variance,
        "fixed_large": schedule.betas,
        "learned_range": log_mean,
        "table": table,
    }[variance]

    # Var(x_prev) = A²·Var(x) + σ², with A from Bayes' rule for the posterior and the exact denoiser.
    expected = 1.0
    for i in reversed(range(steps)):
        a, b = schedule.alphas_cumprod[i].item(), schedule.alphas_cumprod_prev[i].item()
        shrink = math.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        slope = (1 - b) * math.sqrt(a / b) / (1 - a) + math.sqrt(b) * (1 - a / b) / (1 - a) * shrink
        expected = slope**2 * expected + (std2[i].item() if i > 0 else 0.0)

    def network(x: Tensor, step: int) -> Tensor:
        out = gaussian.network(schedule, "x0")(x, step)
        return torch.cat([out, torch.zeros_like(x)], dim=1) if variance == "learned_range" else out

    spec = DiffusionSpec(prediction="x0", variance="fixed_small" if variance == "table" else variance)
    generators = image_generators(1, 2)
    x = draw_noise(generators, (count, 1))
    options = {"variance": table} if variance == "table" else {}
    denoiser = NetworkDenoiser(network, schedule, spec)
    out = sample("ddpm", denoiser, x, schedule, spec=spec, generators=generators, **options)
    error = math.sqrt(2 / (2 * count))  # relative standard error of a variance
    assert out.double().var().item() == pytest.approx(expected, rel=5 * error)


# --- orders of convergence ----------------------------------------------------------------------------


def slopes(errors: Sequence[float]) -> list[float]:
    """By which power of the step length errors fall, from one halving of it to the next."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@cache
def halved(spacing: str, strides: int = 20) -> list[Schedule]:
    """Schedules whose strides halve from one to the next; those that have both ends have a step more."""
    both_ends = spacing in ("even", "log_snr", "karras")
    return [BENT.respace(each + both_ends, spacing=spacing) for each in (strides, 2 * strides, 4 * strides)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("heun", 2), ("unipc", 3)],
)
def test_orders_of_the_deterministic_samplers(name: str, order: int, spacing: str) -> None:
    """For each spacing, and for ε, x_0 and v."""
    x = draw_noise(image_generators(0, 2), (20, 3)).repeat(len(PREDICTIONS), 1, 1)

    def errors(name: str, schedule: Schedule) -> list[float]:
        first, last = schedule.alphas_cumprod[[0, -1]].tolist()
        # The flow between its own ends, then the exact denoiser: what all of them converge to.
        exact = GAUSSIAN.denoise(GAUSSIAN.flow(x, last, first), first)
        out = sample(name, of_all_predictions(schedule), x, schedule, spec=DiffusionSpec())
        return [part.square().mean().sqrt().item() for part in (out - exact).chunk(len(PREDICTIONS))]

    found = [errors(name, schedule) for schedule in halved(spacing)]
    for prediction, of_one in zip(PREDICTIONS, zip(*found, strict=True), strict=True):
        assert slopes(of_one) == pytest.approx([order] * 2, abs=0.15), (prediction, of_one)
        if order > 1:
            assert of_one[-1] < 0.1 * errors("ddim", halved(spacing)[-1])[0]


@pytest.mark.parametrize(
    ("spacing", "strides", "ratio"), [("even", 5, 1.2), ("log_snr", 5, 1.8), ("log_snr", 20, 1.0)]
)
def test_strides_of_a_trained_schedule_do_not_all_halve(spacing: str, strides: int, ratio: float) -> None:
    """Why orders are measured on another one. Next to ᾱ = 1, λ goes with the logarithm of time: half as many
    timesteps make the first stride shorter by a constant. And strides of λ, which halve at first, end at the
    distance of two trained timesteps."""
    lengths = []
    for count in (strides, 2 * strides):
        snr = LINEAR.respace(count + 1, spacing=spacing).snr
        lengths.append((0.5 * snr.log()).diff()[0].abs().item())
    assert lengths[0] / lengths[1] == pytest.approx(ratio, abs=0.05)


@pytest.mark.parametrize(("order", "low", "high"), [(1, 1.8, 2.2), (3, 3.2, 4.2)])
def test_unipc_of_other_orders(order: int, low: float, high: float) -> None:
    x = draw_noise(image_generators(0, 2), (200, 3))
    noisiest = uniform_in_lambda(960).alphas_cumprod[-1].item()
    exact = GAUSSIAN.denoise(GAUSSIAN.flow(x, noisiest, FIRST), FIRST)
    errors = []
    for strides in (20, 40, 80):
        respaced = uniform_in_lambda(strides)
        out = sample_unipc(GAUSSIAN.denoiser(respaced), x, respaced, order=order)
        errors.append((out - exact).square().mean().sqrt().item())
    assert all(low < slope < high for slope in slopes(errors)), errors
    with pytest.raises(ValueError, match="order: found 4, expected 1 to 3"):
        sample_unipc(GAUSSIAN.denoiser(respaced), x, respaced, order=4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("name", "strides", "low", "high"),
    [
        ("ddpm", 20, 0.8, 1.1),
        ("euler_ancestral", 20, 0.8, 1.1),
        ("dpmpp_2m_sde", 20, 1.8, 2.2),
        ("dpmpp_3m_sde", 40, 1.65, 2.2),
        ("sa_solver", 20, 2.7, 3.3),
    ],
)
def test_orders_of_the_law_of_the_samplers_with_noise(
    monkeypatch, name: str, strides: int, low: float, high: float, spacing: str
) -> None:
    """Of the covariance, for each spacing, and for ε, x_0 and v: that of the reverse SDE from N(0, 1) at the
    schedule's own noisiest index, which its start has all but left behind, seen by the exact denoiser."""

    def errors(name: str, schedule: Schedule) -> list[float]:
        first, squared = schedule.alphas_cumprod[0].item(), GAUSSIAN.std**2
        spread = first * squared**2 / (first * squared + 1 - first)
        exact = GAUSSIAN.basis @ torch.diag(spread) @ GAUSSIAN.basis.T
        return [(found - exact).abs().max().item() for _, found in laws(monkeypatch, name, schedule)]

    found = [errors(name, schedule) for schedule in halved(spacing, strides)]
    for prediction, of_one in zip(PREDICTIONS, zip(*found, strict=True), strict=True):
        assert all(low < slope < high for slope in slopes(of_one)), (prediction, slopes(of_one))
    if low > 1.5:
        assert max(found[-1]) < 0.1 * errors("ddpm", halved(spacing, strides)[-1])[0]


def test_sa_solver_without_noise_is_of_second_order() -> None:
    """Seen on data whose x̂_0 bends; the exact weights are closer than the paper's simple ones."""
    x = draw_noise(image_generators(0, 2), (100, 4))
    full = uniform_in_lambda(960)
    exact = sample_unipc(mixture_denoiser(full, 0.6), x, full, order=3)

    def error(strides: int, simple: bool) -> float:
        respaced = uniform_in_lambda(strides)
        denoiser, generators = mixture_denoiser(respaced, 0.6), image_generators(0, 2)
        options = {"generators": generators, "tau": lambda time: 0.0, "simple": simple}
        out = sample_sa_solver(denoiser, x, respaced, **options)
        return (out - exact).square().mean().sqrt().item()

    errors = [error(strides, True) for strides in (40, 80, 160)]
    assert all(1.8 < slope < 2.5 for slope in slopes(errors)), errors
    assert 0 < error(40, False) < 0.5 * errors[0]
    with pytest.raises(ValueError, match="order: found 5, expected 1 to 4"):
        sample_sa_solver(mixture_denoiser(full), x, full, generators=image_generators(0, 2), order=5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "steps", "tolerance"), [("ddim", 500, 2e-2), ("dpmpp_2m", 250, 1e-2)])
def test_deterministic_samplers_follow_the_flow(
    name: str, steps: int, tolerance: float, prediction: str
) -> None:
    schedule = LINEAR.respace(steps)
    x = draw_noise(image_generators(0, 2), (50, 3))
    out = run(name, GAUSSIAN.denoiser(schedule, prediction), schedule, samples=50)
    exact = GAUSSIAN.flow(x, LINEAR.alphas_cumprod[-1].item(), 1.0)
    assert (out - exact).abs().max() < tolerance
    coarse = LINEAR.respace(10)
    rough = run(name, GAUSSIAN.denoiser(coarse, prediction), coarse, samples=50)
    assert (rough - exact).abs().max() > 5 * tolerance


@pytest.mark.parametrize("name_of_schedule", ["cosine", "linear"])
def test_dpmpp_does_not_overshoot_in_few_steps(monkeypatch, name_of_schedule: str) -> None:
    full = make_schedule(name_of_schedule, 1000)
    few = full.respace(8)
    x = draw_noise(image_generators(0, 2), (100, 4))
    exact = sample_ddim(mixture_denoiser(full), x, full)

    def error(sampler) -> float:
        return (sampler(mixture_denoiser(few), x, few) - exact).square().mean().sqrt().item()

    lower_order_final = error(sample_dpmpp_2m)
    assert lower_order_final < 0.85 * error(sample_ddim)
    monkeypatch.setattr(samplers, "FEW_STEPS", 0)
    assert lower_order_final < 0.6 * error(sample_dpmpp_2m)


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_a_long_last_stride_does_not_blow_noise_up(monkeypatch, name: str) -> None:
    """Even timesteps: the last but one is much longer in λ than those before."""
    schedule = LINEAR.respace(60)
    _, off = whitened(*laws(monkeypatch, name, schedule)[1])
    monkeypatch.setattr("unclip.core.diffusion.sde_solvers.LONGEST_STRIDE", math.inf)
    _, blown = whitened(*laws(monkeypatch, name, schedule)[1])
    assert off < 0.1 and blown > 5 * off


def test_heun_stands_the_first_stride_of_a_cosine_schedule(monkeypatch) -> None:
    """σ falls a hundredfold there, and more; Heun's own weight would go far beyond both predictions."""
    schedule = make_schedule("cosine", 1000).respace(12)
    x = draw_noise(image_generators(0, 2), (100, 4))
    exact = sample_ddim(mixture_denoiser(make_schedule("cosine", 1000)), x, make_schedule("cosine", 1000))

    def of(sampler) -> float:
        return (sampler(mixture_denoiser(schedule), x, schedule) - exact).square().mean().sqrt().item()

    kept = of(SAMPLERS["heun"].run)
    monkeypatch.setattr(
        "unclip.core.diffusion.ode_solvers._heun_weight",
        lambda here, there: 0.5 * math.sqrt((1 - here) / here * there / (1 - there)),
    )
    assert of(SAMPLERS["heun"].run) > 3 * kept
