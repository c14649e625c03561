"""Whole trajectories of our samplers and of diffusers' schedulers, with one network and one noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from unclip.core.diffusion.denoiser import Denoiser
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.samplers import SamplerStep
from unclip.core.diffusion.sampling import sample
from unclip.core.diffusion.schedule import Schedule
from unclip.core.diffusion.spec import DiffusionSpec

SHAPE = (3, 8, 8)
BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


class Network:
    """A fixed non-linear 'network', smooth in x and t, that answers in any prediction type."""

    def __init__(self, schedule: Schedule, spec: DiffusionSpec, scale: float = 1.0) -> None:
        g = torch.Generator().manual_seed(5)
        self.mix = torch.randn(8, 8, generator=g, dtype=torch.float64) / 3
        self.schedule, self.spec, self.scale = schedule, spec, scale

    def __call__(self, x: Tensor, step: int) -> Tensor:
        alpha = self.schedule.alphas_cumprod[step].item()
        time = self.schedule.timesteps[step].item() / 1000
        signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
        x = x.double()
        x0 = self.scale * torch.tanh(x @ self.mix + time)
        eps = (x - signal * x0) / sigma
        out = {"eps": eps, "x0": x0, "v": signal * eps - sigma * x0}[self.spec.prediction]
        if self.spec.variance == "learned_range":
            out = torch.cat([out, torch.sin(3 * x)], dim=1)
        return out.float()


def with_exact_tables(scheduler, schedule: Schedule):
    """diffusers makes its tables in float32; with ours in their place only the formulas are compared."""
    scheduler.betas = schedule.betas
    scheduler.alphas = 1 - schedule.betas
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.alpha_t = schedule.sqrt_alphas_cumprod
    scheduler.sigma_t = schedule.sqrt_one_minus_alphas_cumprod
    return scheduler


def reference(scheduler, network: Network, steps: Schedule, *, seed: int = 0, **step_options) -> list[Tensor]:
    """diffusers' loop: the state after each step. ``step_options`` may hold 'chained' for UnCLIPScheduler."""
    generators = image_generators(seed, 2)
    x = draw_noise(generators, SHAPE)
    chained = step_options.pop("chained", False)
    stochastic = step_options.pop("stochastic", True)
    states = []
    timesteps = steps.timesteps.tolist()[::-1]
    for i, t in enumerate(timesteps):
        options = dict(step_options)
        if stochastic:
            options["generator"] = generators
        if chained and i + 1 < len(timesteps):
            options["prev_timestep"] = timesteps[i + 1]
        output = network(x, len(timesteps) - 1 - i)
        x = scheduler.step(output, t, x, **options).prev_sample.float()
        states.append(x)
    return states


def ours(
    name: str, denoiser: Denoiser, spec: DiffusionSpec, steps: Schedule, *, seed: int = 0, **options
) -> list[Tensor]:
    generators, reports = image_generators(seed, 2), list[SamplerStep]()
    x = draw_noise(generators, SHAPE)
    sample(name, denoiser, x, steps, spec=spec, generators=generators, callback=reports.append, **options)
    return [report.x for report in reports]


def furthest(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def set_timesteps(scheduler, steps: Schedule) -> None:
    scheduler.set_timesteps(timesteps=steps.timesteps.tolist()[::-1])


def on_sigmas(
    scheduler, network: Network, steps: Schedule, *, twice: bool = False, **options
) -> list[Tensor]:
    """diffusers' loop of a scheduler that works on x/√ᾱ and σ = √(1−ᾱ)/√ᾱ: our states after each step.

    Args:
        twice: the network is called twice in each step but the last.
    """
    signals = steps.sqrt_alphas_cumprod.flip(0)
    sigmas = torch.cat(
        [(steps.sqrt_one_minus_alphas_cumprod / steps.sqrt_alphas_cumprod).flip(0), torch.zeros(1)]
    )
    timesteps = steps.timesteps.flip(0)
    visited = torch.arange(len(steps))
    if twice:
        visited = torch.cat([visited[:1], visited[1:].repeat_interleave(2)])
    scheduler.set_timesteps(len(steps))
    scheduler.sigmas = torch.cat([sigmas[visited], sigmas[-1:]])
    scheduler.timesteps = timesteps[visited].float()
    x = draw_noise(image_generators(0, 2), SHAPE).double() / signals[0]
    # The noise of the steps follows that of x_T.
    generators = image_generators(0, 2)
    draw_noise(generators, SHAPE)
    if options.pop("noisy", False):
        options["generator"] = generators
    states = []
    for call, visit in enumerate(visited.tolist()):
        output = network((x * signals[visit]).float(), len(steps) - 1 - visit)
        x = scheduler.step(output, scheduler.timesteps[call], x, **options).prev_sample
        if not twice or call % 2 == 1 or call == len(visited) - 1:
            following = len(states) + 1
            states.append((x * (signals[following] if following < len(steps) else 1.0)).float())
    return states
