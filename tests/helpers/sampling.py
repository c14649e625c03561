"""Samplers run without chance: the linear map of their noise, and denoisers that are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from unclip.core.diffusion import samplers
from unclip.core.diffusion.denoiser import Denoiser, Prediction
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.sampling import sample
from unclip.core.diffusion.schedule import Schedule, schedule_from_alphas_cumprod
from unclip.core.diffusion.spec import DiffusionSpec


def run(
    name: str, denoiser, schedule: Schedule, *, rows: int = 2, samples: int = 4, seed: int = 0, **options
):
    generators = image_generators(seed, rows)
    x = draw_noise(generators, (samples, 3))
    return sample(name, denoiser, x, schedule, spec=DiffusionSpec(), generators=generators, **options)


def uniform_in_lambda(strides: int) -> Schedule:
    """Of 960 strides, from λ = 3 to −4, every so many: step lengths in λ go with their number everywhere."""
    lambdas = torch.linspace(3, -4, 961, dtype=torch.float64)
    return schedule_from_alphas_cumprod(torch.sigmoid(2 * lambdas)).respace(strides + 1)


def bent_in_lambda() -> Schedule:
    """19,201 timesteps from λ = 3 to −4, of which even ones are not even in λ, nor in σ^(1/7).

    Both ends have some noise, and time is dense: so all strides of every spacing halve where there are twice
    as many. Those of the schedules that networks have do not.
    """
    time = torch.linspace(0, 1, 19_201, dtype=torch.float64)
    bent = time + 0.35 * torch.sin(2 * math.pi * time) / (2 * math.pi)
    return schedule_from_alphas_cumprod(torch.sigmoid(2 * (3 - 7 * bent)))


def linear_map(
    monkeypatch, run: Callable[[Tensor, list[torch.Generator]], Tensor], draws: int
) -> tuple[Tensor, Tensor]:
    """Mean [3] and covariance [3, 3] of what a sampler makes of its noise, see :func:`linear_maps`."""
    return linear_maps(monkeypatch, run, draws, 1)[0]


def linear_maps(
    monkeypatch, run: Callable[[Tensor, list[torch.Generator]], Tensor], draws: int, copies: int
) -> list[tuple[Tensor, Tensor]]:
    """Mean [3] and covariance [3, 3] of what a sampler makes of its noise, without chance.

    The exact denoiser of a Gaussian is affine, so a sampler's output is affine in all its noise. One run with
    one row for each component of each noise, set to one, gives the whole linear map.

    Args:
        run: (x_T, generators) → samples.
        draws: of x_T and of noise, at most.
        copies: of all the rows, one after the other, for denoisers that differ between them; a result each.
    """
    impulses = torch.zeros(draws, 3 * draws + 1, 1, 3)
    for k in range(draws):
        for axis in range(3):
            impulses[k, 3 * k + axis, 0, axis] = 1.0
    queue = iter(impulses.repeat(1, copies, 1, 1))
    monkeypatch.setattr(samplers, "draw_noise", lambda generators, shape, device: next(queue))
    x = next(queue)
    out = run(x, [torch.Generator()] * len(x)).double()[:, 0]  # [rows, 3]
    maps = []
    for rows in out.chunk(copies):
        mean, columns = rows[-1], rows[:-1] - rows[-1]
        maps.append((mean, columns.T @ columns))
    return maps


def mixture_denoiser(schedule: Schedule, spread: float = 0.1) -> Denoiser:
    """Exact for eight clusters in four dimensions: unlike a Gaussian's, its x̂_0 bends on the way."""
    centres = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    squared = spread**2

    def call(x: Tensor, step: int) -> Prediction:
        alpha = schedule.alphas_cumprod[step].item()
        variance = alpha * squared + 1 - alpha
        offset = x[:, :, None] - math.sqrt(alpha) * centres  # [B, N, 8, 4]
        weight = torch.softmax(-offset.square().sum(dim=-1) / (2 * variance), dim=-1)
        means = centres + squared * math.sqrt(alpha) / variance * offset
        return Prediction((weight[..., None] * means).sum(dim=2))

    return call
