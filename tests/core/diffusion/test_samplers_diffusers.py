"""Every state of whole trajectories against diffusers' schedulers, with the same network and noise."""

from __future__ import annotations

import pytest
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UnCLIPScheduler
from unclip.core.diffusion.denoiser import ClampedDenoiser, DynamicThresholdDenoiser, NetworkDenoiser
from unclip.core.diffusion.schedule import make_schedule
from unclip.core.diffusion.spec import DiffusionSpec

from ...helpers.trajectories import (
    BETAS,
    PREDICTIONS,
    Network,
    furthest,
    ours,
    reference,
    set_timesteps,
    with_exact_tables,
)

TOLERANCE, APART = 1e-5, 1e-3


# --- Karlo: UnCLIPScheduler, prior and decoder --------------------------------------------------------


@pytest.mark.parametrize("count", [2, 7, 25])
def test_prior_sampling_of_unclip(count: int) -> None:
    full = make_schedule("cosine", 1000)
    steps, spec = full.respace(count), DiffusionSpec(prediction="x0", clip_x0=5.0)
    scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
    with_exact_tables(scheduler, full).set_timesteps(count)
    network = Network(steps, spec, scale=8.0)
    theirs = reference(scheduler, network, steps, chained=True)
    clamped = ClampedDenoiser(NetworkDenoiser(network, steps, spec), 5.0)
    assert furthest(ours("ddpm", clamped, spec, steps), theirs) <= TOLERANCE
    unclamped = NetworkDenoiser(network, steps, spec)
    assert furthest(ours("ddpm", unclamped, spec, steps), theirs) > APART
    assert furthest(ours("ddpm", clamped, spec, steps, variance=steps.betas), theirs) > APART


@pytest.mark.parametrize("count", [2, 25, 50])
def test_decoder_sampling_of_unclip(count: int) -> None:
    full = make_schedule("cosine", 1000)
    steps, spec = full.respace(count), DiffusionSpec(prediction="eps", variance="learned_range")
    scheduler = UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon")
    with_exact_tables(scheduler, full).set_timesteps(count)
    network = Network(steps, spec, scale=1.4)
    theirs = reference(scheduler, network, steps, chained=True)
    clamped = ClampedDenoiser(NetworkDenoiser(network, steps, spec), 1.0)
    assert furthest(ours("ddpm", clamped, spec, steps), theirs) <= TOLERANCE
    small = ours("ddpm", clamped, spec, steps, variance=steps.posterior_variance)
    assert furthest(small, theirs) > APART


# --- DDPMScheduler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ancestral_sampling(schedule: str, prediction: str, variance: str) -> None:
    full = make_schedule(schedule, 1000)
    steps, spec = full.respace(20), DiffusionSpec(schedule, 1000, prediction, variance)
    scheduler = DDPMScheduler(
        beta_schedule=BETAS[schedule],
        prediction_type=PREDICTIONS[prediction],
        variance_type=variance,
        clip_sample=True,
    )
    set_timesteps(with_exact_tables(scheduler, full), steps)
    network = Network(steps, spec, scale=1.4)
    theirs = reference(scheduler, network, steps)
    clamped = ClampedDenoiser(NetworkDenoiser(network, steps, spec), 1.0)
    assert furthest(ours("ddpm", clamped, spec, steps), theirs) <= TOLERANCE
    wrong = "fixed_large" if variance == "fixed_small" else "fixed_small"
    other = DiffusionSpec(schedule, 1000, prediction, wrong)
    assert furthest(ours("ddpm", clamped, other, steps), theirs) > APART


def test_ancestral_sampling_with_dynamic_thresholding() -> None:
    full = make_schedule("cosine", 1000)
    steps, spec = full.respace(20), DiffusionSpec(prediction="v")
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        thresholding=True,
        dynamic_thresholding_ratio=0.8,
        sample_max_value=100.0,
    )
    set_timesteps(with_exact_tables(scheduler, full), steps)
    network = Network(steps, spec, scale=3.0)
    theirs = reference(scheduler, network, steps)
    plain = NetworkDenoiser(network, steps, spec)
    assert furthest(ours("ddpm", DynamicThresholdDenoiser(plain, 0.8), spec, steps), theirs) <= TOLERANCE
    assert furthest(ours("ddpm", ClampedDenoiser(plain, 1.0), spec, steps), theirs) > APART


# --- DDIMScheduler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_sampling(schedule: str, prediction: str, eta: float) -> None:
    full = make_schedule(schedule, 1000)
    # DDIMScheduler takes its previous timestep to be T/steps below: trailing spacing only.
    steps, spec = full.respace(20, spacing="trailing"), DiffusionSpec(schedule, 1000, prediction)
    scheduler = DDIMScheduler(
        beta_schedule=BETAS[schedule],
        prediction_type=PREDICTIONS[prediction],
        clip_sample=True,
        timestep_spacing="trailing",
    )
    with_exact_tables(scheduler, full).set_timesteps(20)
    assert scheduler.timesteps.tolist() == steps.timesteps.tolist()[::-1]
    network = Network(steps, spec, scale=1.4)
    theirs = reference(scheduler, network, steps, eta=eta, use_clipped_model_output=True)
    clamped = ClampedDenoiser(NetworkDenoiser(network, steps, spec), 1.0)
    assert furthest(ours("ddim", clamped, spec, steps, eta=eta), theirs) <= TOLERANCE
    assert furthest(ours("ddim", clamped, spec, steps, eta=abs(eta - 0.1)), theirs) > APART


# --- DPMSolverMultistepScheduler ----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("count", [15, 25])
def test_dpmpp_sampling(schedule: str, prediction: str, count: int) -> None:
    full = make_schedule(schedule, 1000)
    steps, spec = full.respace(count, spacing="trailing"), DiffusionSpec(schedule, 1000, prediction)
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule=BETAS[schedule], prediction_type=PREDICTIONS[prediction]
    )
    set_timesteps(with_exact_tables(scheduler, full), steps)
    network = Network(steps, spec)
    theirs = reference(scheduler, network, steps, stochastic=False)
    denoiser = NetworkDenoiser(network, steps, spec)
    assert furthest(ours("dpmpp_2m", denoiser, spec, steps), theirs) <= TOLERANCE
    assert furthest(ours("ddim", denoiser, spec, steps), theirs) > APART
