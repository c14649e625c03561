"""Every state of whole trajectories of the further solvers against diffusers' schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor
from unclip.core.diffusion.denoiser import NetworkDenoiser
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.ode_solvers import sample_unipc
from unclip.core.diffusion.samplers import SamplerStep
from unclip.core.diffusion.schedule import Schedule, make_schedule, schedule_from_betas
from unclip.core.diffusion.sde_solvers import sample_sa_solver
from unclip.core.diffusion.spec import DiffusionSpec

from ...helpers.trajectories import (
    BETAS,
    PREDICTIONS,
    SHAPE,
    Network,
    furthest,
    on_sigmas,
    ours,
    reference,
    set_timesteps,
    with_exact_tables,
)

TOLERANCE, APART = 1e-4, 1e-3
# Kandinsky's: its σ end at 25.
LATENT = schedule_from_betas(torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64))


def states_of(sampler, network: Network, spec: DiffusionSpec, steps: Schedule, **options) -> list[Tensor]:
    reports, generators = list[SamplerStep](), image_generators(0, 2)
    x = draw_noise(generators, SHAPE)
    if "tau" in options:
        options["generators"] = generators
    sampler(NetworkDenoiser(network, steps, spec), x, steps, callback=reports.append, **options)
    return [report.x for report in reports]


def with_exact_sigmas(scheduler, steps: Schedule, last: float = 0.0):
    """After ``set_timesteps``: our timesteps, and their σ in double precision."""
    sigmas = (steps.sqrt_one_minus_alphas_cumprod / steps.sqrt_alphas_cumprod).flip(0)
    scheduler.sigmas = torch.cat([sigmas, torch.tensor([last], dtype=torch.float64)])
    scheduler.timesteps = steps.timesteps.flip(0)
    return scheduler


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(schedule: str, prediction: str, order: int) -> None:
    full = make_schedule(schedule, 1000)
    steps, spec = full.respace(12, spacing="trailing"), DiffusionSpec(schedule, 1000, prediction)
    scheduler = UniPCMultistepScheduler(
        beta_schedule=BETAS[schedule], prediction_type=PREDICTIONS[prediction], solver_order=order
    )
    scheduler.set_timesteps(len(steps))
    with_exact_sigmas(scheduler, steps)
    network = Network(steps, spec)
    theirs = reference(scheduler, network, steps, stochastic=False)
    assert furthest(states_of(sample_unipc, network, spec, steps, order=order), theirs) <= TOLERANCE
    other = states_of(sample_unipc, network, spec, steps, order=order % 3 + 1)
    assert furthest(other, theirs) > APART


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("count", [10, 20])
def test_dpmpp_2m_sde(schedule: str, prediction: str, count: int) -> None:
    """dpmpp_3m_sde has no counterpart here: in diffusers' third order with noise the weight of the second
    difference does not vanish with the step. It is compared with k-diffusion's, in test_samplers_comfyui.
    """
    full = make_schedule(schedule, 1000)
    # Different on purpose: a stride more than twice as long in λ as the one before, which this spacing has
    # none of, does not extrapolate, nor does the last but one of fewer than 15 steps, as in dpmpp_2m.
    steps, spec = full.respace(count, spacing="karras"), DiffusionSpec(schedule, 1000, prediction)
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule=BETAS[schedule],
        prediction_type=PREDICTIONS[prediction],
        algorithm_type="sde-dpmsolver++",
    )
    set_timesteps(with_exact_tables(scheduler, full), steps)
    with_exact_sigmas(scheduler, steps)
    network = Network(steps, spec)
    theirs = reference(scheduler, network, steps)
    denoiser = NetworkDenoiser(network, steps, spec)
    alike = slice(-2) if count < 15 else slice(None)
    assert furthest(ours("dpmpp_2m_sde", denoiser, spec, steps)[alike], theirs[alike]) <= TOLERANCE
    assert furthest(ours("ddpm", denoiser, spec, steps), theirs) > APART


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver(tau: float, schedule: str, prediction: str) -> None:
    """By the paper's simple weights; theirs are those of the exact integral from the third order on.

    Different on purpose: theirs ends on the least σ, and so steps to it by second order, ours on the clean
    sample: the states before that are compared. Theirs draws noise that it does not use where τ is 0.
    """
    full = make_schedule(schedule, 1000)
    steps, spec = full.respace(20, spacing="trailing"), DiffusionSpec(schedule, 1000, prediction)
    scheduler = SASolverScheduler(beta_schedule=BETAS[schedule], prediction_type=PREDICTIONS[prediction])
    scheduler.tau_func = lambda timestep: torch.tensor(tau)
    scheduler.set_timesteps(len(steps))
    least = math.sqrt(1 / full.alphas_cumprod[0].item() - 1)
    with_exact_sigmas(scheduler, steps, least)
    network = Network(steps, spec)
    theirs = reference(scheduler, network, steps)[:-2]

    def states(**options) -> list[Tensor]:
        given = {"tau": lambda time: tau, "simple": True, **options}
        return states_of(sample_sa_solver, network, spec, steps, **given)[:-2]

    assert furthest(states(), theirs) <= TOLERANCE
    assert furthest(states(simple=False), theirs) > APART
    assert furthest(states(tau=lambda time: 0.8), theirs) > APART


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("euler", EulerDiscreteScheduler),
        ("euler_ancestral", EulerAncestralDiscreteScheduler),
        ("heun", HeunDiscreteScheduler),
    ],
)
def test_samplers_on_sigma(name: str, scheduler, prediction: str) -> None:
    """Heun's: with strides in which σ does not more than halve; in longer ones ours looks less far ahead."""
    if (name, prediction) == ("euler_ancestral", "x0"):
        pytest.skip("diffusers' ancestral scheduler refuses networks that predict x0")
    steps, spec = LATENT.respace(20, spacing="karras"), DiffusionSpec(prediction=prediction)
    assert (steps.snr.sqrt().log().diff().abs() < math.log(2)).all()
    network = Network(steps, spec)
    made = scheduler(beta_schedule="linear", prediction_type=PREDICTIONS[prediction])
    theirs = on_sigmas(made, network, steps, twice=name == "heun", noisy=name == "euler_ancestral")
    denoiser = NetworkDenoiser(network, steps, spec)
    assert furthest(ours(name, denoiser, spec, steps), theirs) <= TOLERANCE
    other = "euler" if name != "euler" else "heun"
    assert furthest(ours(other, denoiser, spec, steps), theirs) > APART
