"""What all samplers have in common: batches, callbacks, types, errors; and which are one another."""

from __future__ import annotations

import math
from inspect import signature

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.denoiser import NetworkDenoiser, Prediction
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
from unclip.core.diffusion.schedule import make_schedule, schedule_from_betas
from unclip.core.diffusion.spec import DiffusionSpec

from ...helpers.gaussian import example_gaussian
from ...helpers.sampling import run

GAUSSIAN = example_gaussian()
LINEAR = make_schedule("linear", 1000)


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


def test_euler_is_ddim_and_its_ancestral_form_ddpm() -> None:
    schedule = make_schedule("cosine", 1000).respace(8)
    denoiser = GAUSSIAN.denoiser(schedule)
    assert torch.equal(run("euler", denoiser, schedule), run("ddim", denoiser, schedule))
    ancestral = run("euler_ancestral", denoiser, schedule)
    assert torch.equal(ancestral, run("ddpm", denoiser, schedule))
    # k-diffusion's own formulas, for one step on σ.
    here, there = schedule.alphas_cumprod[5].item(), schedule.alphas_cumprod[4].item()
    sigma, lower = math.sqrt((1 - here) / here), math.sqrt((1 - there) / there)
    up = math.sqrt(lower**2 * (sigma**2 - lower**2) / sigma**2)
    down = math.sqrt(lower**2 - up**2)
    x, x0, noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    stepped = x0 + (down / sigma) * (x / math.sqrt(here) - x0) + up * noise
    ours = ddim_update(x, x0, here, there, ddim_sigma(here, there, 1.0), noise)
    assert (ours - math.sqrt(there) * stepped).abs().max() <= 1e-5


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


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.7), *((name, 0.0) for name in SAMPLERS)])
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
    calls = SAMPLERS[name].calls
    assert [step for step, _ in asked] == ([4, 3, 2, 1, 0] if calls == 1 else [4, 3, 3, 2, 2, 1, 1, 0, 0])
    for report, (_, x_next) in zip(seen, asked[calls::calls], strict=False):
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
    with pytest.raises(ValueError, match=r"found 'dpm', expected one of ddpm, ddim, dpmpp_2m"):
        sample("dpm", denoiser, x, schedule, spec=spec, generators=generators)
    with pytest.raises(ValueError, match="generators: found 1 for a batch of 2"):
        sample("ddpm", denoiser, x, schedule, spec=spec, generators=image_generators(0, 1))
    with pytest.raises(ValueError, match=r"the sampler ddpm adds noise"):
        sample_ddpm(denoiser, x, schedule, generators=None)
    with pytest.raises(ValueError, match=r"the sampler ddim with eta 0\.5 adds noise"):
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
        ("unipc", 0.0, False),
        ("heun", 0.0, False),
        ("euler", 1.0, False),
        ("euler_ancestral", 0.0, True),
        ("dpmpp_2m_sde", 0.0, True),
        ("dpmpp_3m_sde", 0.0, True),
        ("sa_solver", 0.0, True),
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
    keywords = [each for each in signature(SAMPLERS[name].run).parameters.values() if each.kind == 3]
    taken = {*SAMPLERS[name].takes, "callback"}
    assert taken <= {each.name for each in keywords}
    # What the table does not name is for Python alone, and has a default.
    assert all(each.default is not each.empty for each in keywords if each.name not in taken)
