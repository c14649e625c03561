from __future__ import annotations

import math
from inspect import signature
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion import samplers
from unclip.core.diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.samplers import (
    SamplerStep,
    ddim_sigma,
    ddim_update,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
)
from unclip.core.diffusion.sampling import SAMPLERS, sample
from unclip.core.diffusion.schedule import (
    Schedule,
    make_schedule,
    schedule_from_alphas_cumprod,
    schedule_from_betas,
)
from unclip.core.diffusion.spec import DiffusionSpec

from ...helpers.gaussian import Gaussian, example_gaussian

GAUSSIAN = example_gaussian()
LINEAR = make_schedule("linear", 1000)


def isotropic(std: float) -> Gaussian:
    one = torch.ones(1, dtype=torch.float64)
    return Gaussian(mean=0.4 * one, std=std * one, basis=one[None])


def run(
    name: str, denoiser, schedule: Schedule, *, rows: int = 2, samples: int = 4, seed: int = 0, **options
):
    generators = image_generators(seed, rows)
    x = draw_noise(generators, (samples, 3))
    return sample(name, denoiser, x, schedule, spec=DiffusionSpec(), generators=generators, **options)


# --- the law of the samples ---------------------------------------------------------------------------


def law(monkeypatch, name: str, schedule: Schedule, prediction: str, eta: float) -> tuple[Tensor, Tensor]:
    """Mean [3] and covariance [3, 3] of a sampler's output, without chance.

    The exact denoiser of a Gaussian is affine, so a sampler's output is affine in all its noise. One run with
    one row for each component of each noise, set to one, gives the whole linear map.
    """
    draws = len(schedule)  # x_T and the noise of every step but the last
    impulses = torch.zeros(draws, 3 * draws + 1, 1, 3)
    for k in range(draws):
        for axis in range(3):
            impulses[k, 3 * k + axis, 0, axis] = 1.0
    queue = iter(impulses)
    monkeypatch.setattr(samplers, "draw_noise", lambda generators, shape, device: next(queue))
    x = next(queue)
    out = sample(
        name,
        GAUSSIAN.denoiser(schedule, prediction),
        x,
        schedule,
        spec=DiffusionSpec(),
        generators=[torch.Generator()] * len(x),
        eta=eta,
    )
    out = out.double()[:, 0]  # [rows, 3]
    mean, columns = out[-1], out[:-1] - out[-1]
    return mean, columns.T @ columns


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(("name", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpmpp_2m", 0.0)])
def test_samples_have_the_mean_and_covariance_of_the_data(
    monkeypatch, name: str, eta: float, prediction: str
) -> None:
    errors = []
    for steps in (100, 500):
        mean, covariance = law(monkeypatch, name, LINEAR.respace(steps), prediction, eta)
        # Seen along the data's own axes in its own standard deviations, the law should be N(0, I).
        whiten = GAUSSIAN.basis / GAUSSIAN.std
        assert ((mean - GAUSSIAN.mean) @ whiten).abs().max() < 0.02
        errors.append((whiten.T @ covariance @ whiten - torch.eye(3)).abs().max().item())
    # What is left is the discretisation, and goes with it.
    assert errors[1] < 0.05
    assert errors[0] > 3.5 * errors[1]


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


# --- the deterministic samplers against the probability flow ------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
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


def test_dpmpp_is_of_second_order_and_ddim_of_first() -> None:
    # Uniform in λ, so that step lengths in λ go with the number of steps everywhere; 960 divides evenly.
    schedule = schedule_from_alphas_cumprod(
        torch.sigmoid(2 * torch.linspace(3, -4, 961, dtype=torch.float64))
    )
    x = draw_noise(image_generators(0, 2), (200, 3))
    # The flow down to index 0, then the exact denoiser: what both samplers converge to.
    first = schedule.alphas_cumprod[0].item()
    exact = GAUSSIAN.denoise(GAUSSIAN.flow(x, schedule.alphas_cumprod[-1].item(), first), first)

    def error(name: str, strides: int) -> float:
        respaced = schedule.respace(strides + 1)
        out = run(name, GAUSSIAN.denoiser(respaced), respaced, samples=200)
        return (out - exact).square().mean().sqrt().item()

    for name, order in (("ddim", 1), ("dpmpp_2m", 2)):
        errors = [error(name, strides) for strides in (40, 80, 160)]
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2), (name, errors)
    assert error("dpmpp_2m", 80) < 0.1 * error("ddim", 80)


def mixture_denoiser(schedule: Schedule) -> Denoiser:
    """Exact for eight narrow clusters in four dimensions: unlike a Gaussian's, its x̂_0 bends on the way."""
    centres = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    spread = 0.1**2

    def call(x: Tensor, step: int) -> Prediction:
        alpha = schedule.alphas_cumprod[step].item()
        variance = alpha * spread + 1 - alpha
        offset = x[:, :, None] - math.sqrt(alpha) * centres  # [B, N, 8, 4]
        weight = torch.softmax(-offset.square().sum(dim=-1) / (2 * variance), dim=-1)
        means = centres + spread * math.sqrt(alpha) / variance * offset
        return Prediction((weight[..., None] * means).sum(dim=2))

    return call


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


def test_ddim_update_is_its_own_inverse() -> None:
    x, x0 = torch.randn(2, 3), torch.randn(2, 3)
    back = ddim_update(ddim_update(x, x0, 0.3, 0.7), x0, 0.7, 0.3)
    assert torch.allclose(back, x, atol=1e-6)
    # The same point of the same straight path: x = √ᾱ·x0 + √(1−ᾱ)·ε with ε kept.
    noise = (x - math.sqrt(0.3) * x0) / math.sqrt(0.7)
    assert torch.allclose(
        ddim_update(x, x0, 0.3, 0.7), math.sqrt(0.7) * x0 + math.sqrt(0.3) * noise, atol=1e-6
    )


def test_ddim_inverts_with_the_same_update() -> None:
    """Run towards noise and back: the round trip of a fine schedule returns to its start."""
    schedule = LINEAR.respace(500)
    denoiser = GAUSSIAN.denoiser(schedule)
    data = GAUSSIAN.sample((2, 50), torch.Generator().manual_seed(0)).float()
    x = data
    alphas = schedule.alphas_cumprod.tolist()
    for index in range(len(schedule) - 1):
        x = ddim_update(x, denoiser(x, index).x0, alphas[index], alphas[index + 1])
    assert (sample_ddim(denoiser, x, schedule) - data).abs().max() < 0.05
    assert abs(x.std().item() - 1) < 0.1


# --- relations between samplers -----------------------------------------------------------------------


def test_ddim_with_eta_one_is_ddpm() -> None:
    schedule = make_schedule("cosine", 1000).respace(8)
    denoiser = GAUSSIAN.denoiser(schedule)
    ddpm, ddim = run("ddpm", denoiser, schedule), run("ddim", denoiser, schedule, eta=1.0)
    assert (ddpm - ddim).abs().max() <= 1e-5
    assert (ddpm - run("ddim", denoiser, schedule, eta=0.9)).abs().max() > 1e-2


def test_ddim_sigma_is_the_posterior_deviation_at_eta_one() -> None:
    schedule = LINEAR.respace(10)
    for i in range(10):
        sigma = ddim_sigma(schedule.alphas_cumprod[i].item(), schedule.alphas_cumprod_prev[i].item(), 1.0)
        assert sigma == pytest.approx(schedule.posterior_variance[i].sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("name_of_schedule", ["cosine", "linear"])
def test_one_step_returns_the_prediction(name: str, name_of_schedule: str) -> None:
    schedule = make_schedule(name_of_schedule, 1000).respace(1)
    x = draw_noise(image_generators(0, 2), (4, 3))
    expected = GAUSSIAN.denoise(x, schedule.alphas_cumprod[0].item())
    out = run(name, GAUSSIAN.denoiser(schedule), schedule, eta=1.0 if name == "ddim" else 0.0)
    assert (out - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_final_step_adds_no_noise(name: str) -> None:
    schedule, seen = make_schedule("cosine", 1000).respace(5), []
    out = run(name, GAUSSIAN.denoiser(schedule), schedule, eta=1.0, callback=seen.append)
    assert (out - seen[-1].x0).abs().max() <= 1e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_schedule_without_any_signal_at_its_end_works(name: str) -> None:
    schedule = schedule_from_betas([0.02, 0.1, 0.3, 0.6, 1.0])
    out = run(name, GAUSSIAN.denoiser(schedule, "v"), schedule)
    assert torch.isfinite(out).all()


# --- batches, callbacks, errors -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "eta"), [("ddpm", 0.0), ("ddim", 0.7), ("dpmpp_2m", 0.0)])
def test_an_image_is_the_same_in_any_batch(name: str, eta: float) -> None:
    schedule = make_schedule("cosine", 1000).respace(6)

    def denoiser(x: Tensor, step: int) -> Prediction:
        return Prediction(torch.tanh(x))

    batch = run(name, denoiser, schedule, rows=4, seed=10, eta=eta)
    alone = run(name, denoiser, schedule, rows=1, seed=12, eta=eta)
    assert torch.equal(batch[2:3], alone)
    assert not torch.equal(batch[1:2], alone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_reported(name: str) -> None:
    schedule, seen = make_schedule("cosine", 1000).respace(5), []
    denoiser, asked = GAUSSIAN.denoiser(schedule), []

    def watched(x: Tensor, step: int) -> Prediction:
        asked.append((step, x))
        return denoiser(x, step)

    out = run(name, watched, schedule, callback=seen.append)
    assert [(s.index, s.total) for s in seen] == [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]
    assert [step for step, _ in asked] == [4, 3, 2, 1, 0]
    for report, (_, x_next) in zip(seen, asked[1:], strict=False):
        assert report.x is x_next  # the state after the step
    assert torch.equal(seen[-1].x, out)
    assert torch.equal(seen[0].x0, denoiser(asked[0][1], 4).x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_interrupts_by_raising(name: str) -> None:
    class InterruptedError(Exception):
        pass

    schedule, steps = make_schedule("cosine", 1000).respace(5), []

    def stop(step: SamplerStep) -> None:
        steps.append(step.index)
        if step.index == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(name, GAUSSIAN.denoiser(schedule), schedule, callback=stop)
    assert steps == [0, 1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_state_is_float32_without_gradients_and_the_input_is_kept(name: str) -> None:
    schedule = make_schedule("cosine", 1000).respace(3)
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    before, weight = x.clone(), torch.ones((), requires_grad=True)

    def denoiser(x: Tensor, step: int) -> Prediction:
        assert x.dtype == torch.float32
        return Prediction(weight * torch.tanh(x))

    out = sample(name, denoiser, x, schedule, spec=DiffusionSpec(), generators=image_generators(0, 1))
    assert out.dtype == torch.float32 and not out.requires_grad
    assert torch.equal(x, before)


def test_names_and_options_are_checked() -> None:
    schedule, x = make_schedule("cosine", 1000).respace(3), torch.zeros(2, 3)
    spec, generators = DiffusionSpec(), image_generators(0, 2)
    denoiser = lambda x, step: Prediction(x)  # noqa: E731
    with pytest.raises(ValueError, match=r"found 'euler', expected one of ddpm, ddim, dpmpp_2m"):
        sample("euler", denoiser, x, schedule, spec=spec, generators=generators)
    with pytest.raises(ValueError, match="generators: found 1 for a batch of 2"):
        sample("ddpm", denoiser, x, schedule, spec=spec, generators=image_generators(0, 1))
    with pytest.raises(ValueError, match=r"the ddpm sampler adds noise"):
        sample_ddpm(denoiser, x, schedule, generators=None)
    with pytest.raises(ValueError, match=r"ddim with eta 0\.5 adds noise"):
        sample_ddim(denoiser, x, schedule, eta=0.5)
    with pytest.raises(ValueError, match="eta: found 2"):
        sample_ddim(denoiser, x, schedule, eta=2)
    with pytest.raises(ValueError, match="'learned_range' needs a network"):
        sample_ddpm(denoiser, x, schedule, generators=generators, variance="learned_range")
    with pytest.raises(ValueError, match="variance: found 'large'"):
        sample_ddpm(denoiser, x, schedule, generators=generators, variance="large")
    for table in (torch.ones(4), torch.tensor([0.1, -0.1, 0.1]), torch.full((3,), float("nan"))):
        with pytest.raises(ValueError, match="table of 3 variances"):
            sample_ddpm(denoiser, x, schedule, generators=generators, variance=table)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SAMPLERS)
def test_values_that_are_not_finite_are_reported(name: str, bad: float) -> None:
    schedule, spec = make_schedule("cosine", 1000).respace(3), DiffusionSpec()
    generators = image_generators(0, 1)
    with pytest.raises(ValueError, match="starting noise holds NaN or infinite"):
        sample(
            name,
            lambda x, s: Prediction(x),
            torch.full((1, 3), bad),
            schedule,
            spec=spec,
            generators=generators,
        )
    with pytest.raises(ValueError, match="the network overflowed"):
        sample(
            name,
            lambda x, s: Prediction(torch.full_like(x, bad)),
            torch.zeros(1, 3),
            schedule,
            spec=spec,
            generators=generators,
        )


def test_dpmpp_needs_no_generators() -> None:
    schedule = make_schedule("cosine", 1000).respace(3)
    assert torch.isfinite(sample_dpmpp_2m(GAUSSIAN.denoiser(schedule), torch.zeros(1, 2, 3), schedule)).all()


@pytest.mark.parametrize(
    ("name", "eta", "expected"),
    [
        ("ddpm", 0.0, True),
        ("ddpm", 1.0, True),
        ("ddim", 0.0, False),
        ("ddim", 0.5, True),
        ("dpmpp_2m", 0.0, False),
        ("dpmpp_2m", 1.0, False),
    ],
)
def test_a_sampler_says_whether_it_adds_noise(name: str, eta: float, expected: bool) -> None:
    """As it does: other generators give another sample then, and only then."""
    assert SAMPLERS[name].adds_noise(eta) == expected
    schedule = make_schedule("cosine", 100).respace(5)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    network = NetworkDenoiser(lambda x, _: torch.tanh(x), schedule, DiffusionSpec())
    first, other = (
        sample(
            name, network, x, schedule, spec=DiffusionSpec(), eta=eta, generators=image_generators(seed, 1)
        )
        for seed in (1, 2)
    )
    assert torch.equal(first, other) != expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_takes_what_the_table_says(name: str) -> None:
    keywords = {each.name for each in signature(SAMPLERS[name].run).parameters.values() if each.kind == 3}
    assert keywords == {*SAMPLERS[name].takes, "callback"}
