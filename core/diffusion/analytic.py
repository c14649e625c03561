"""Analytic-DPM (Bao et al. 2201.06503): optimal reverse variances from one statistic per timestep."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from einops import rearrange
from torch import Tensor

from . import parameterization as param
from .denoiser import Denoiser, Prediction
from .noise import draw_noise, image_generators
from .samplers import SamplerStep, StepCallback, sample_dpmpp_2m
from .schedule import Schedule

OWN_SAMPLES = 16
"""For each group of :func:`own_eps_power`."""


@torch.no_grad()
def estimate_eps_power(
    batches: Iterable[tuple[Tensor, Denoiser]], schedule: Schedule, *, generator: torch.Generator
) -> Tensor:
    """Monte-Carlo estimate of E‖ε̂(x_t, t)‖²/d at every index of a schedule ((1−ᾱ)·Γ in 2201.06503, eq. 8).

    Args:
        batches: clean training samples [B, …] in the network's units, each batch with a denoiser that holds
            its conditions (without guidance or clamping: the statistic is the trained network's). Every batch
            passes through the network once at each index.
        schedule: what the denoisers index; the full one gives a table that serves any respacing of it.
        generator: for the noise, on the CPU.

    Returns:
        [S] float64.

    Raises:
        ValueError: when there are no batches.
    """
    total = torch.zeros(len(schedule), dtype=torch.float64)
    count = 0
    for x0, denoiser in batches:
        for index in range(len(schedule)):
            noise = torch.randn(x0.shape, generator=generator, dtype=torch.float32).to(x0.device)
            _, eps = _noised(denoiser, x0.float(), noise, schedule, index)
            total[index] += eps.cpu().double().square().sum().item()
        count += x0.numel()
    if count == 0:
        raise ValueError("batches: found none; the Analytic-DPM table needs training samples")
    return total / count


@torch.no_grad()
def own_eps_power(
    denoiser: Denoiser,
    limited: Denoiser,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    groups: int = 1,
    device: torch.device | str = "cpu",
    callbacks: tuple[StepCallback | None, StepCallback | None] = (None, None),
) -> Tensor:
    """E‖ε̂(x_t, t)‖²/d where there are no training samples: samples of the network itself take their place.

    They are drawn by ``sample_dpmpp_2m``, which keeps their spread where steps are few, and by noise that is
    always the same: the statistic depends on the network and its conditions alone. It is measured as
    1 − E‖ε − ε̂‖²/d, which is the same for ε̂ = E[ε|x_t], the better one for another (2206.07309), and
    exact with few samples where x_t is nearly noise and the variance hangs on how near to 1 it is.

    Args:
        denoiser: of ``groups``·``OWN_SAMPLES`` rows, those of a group, which has its own conditions, being
            neighbours; without guidance or clamping, as for :func:`estimate_eps_power`.
        limited: the same one, as it is sampled.
        schedule: the one that is sampled later.
        shape: of one sample.
        callbacks: called after each step of sampling, and of measuring the samples.

    Returns:
        [S, groups] float64.
    """
    generators = image_generators(0, OWN_SAMPLES)

    def noise() -> Tensor:
        drawn = draw_noise(generators, shape, device)
        return drawn.repeat(groups, *(1,) * len(shape))  # [groups·OWN_SAMPLES, …]

    x0 = sample_dpmpp_2m(limited, noise(), schedule, callback=callbacks[0])
    powers = []
    for index in range(len(schedule)):
        eps = noise()
        prediction, found = _noised(denoiser, x0, eps, schedule, index)
        error = (eps - found).cpu().double().square()  # not every device has float64
        powers.append(1 - rearrange(error, "(g m) ... -> g (m ...)", g=groups).mean(dim=1))
        if callbacks[1] is not None:
            callbacks[1](SamplerStep(index, len(schedule), x0, prediction.x0))
    return torch.stack(powers)


def _noised(
    denoiser: Denoiser, x0: Tensor, noise: Tensor, schedule: Schedule, index: int
) -> tuple[Prediction, Tensor]:
    """What a denoiser says of clean samples that are noised to an index, and its ε̂."""
    signal = schedule.sqrt_alphas_cumprod[index].item()
    sigma = schedule.sqrt_one_minus_alphas_cumprod[index].item()
    x = param.add_noise(x0, noise, signal, sigma)
    prediction = denoiser(x, index)
    return prediction, param.to_eps(prediction.x0, x, signal, sigma)


def analytic_variance(
    schedule: Schedule, eps_power: Tensor, *, data_range: tuple[float, float] | None = None
) -> Tensor:
    """Optimal reverse variances of the DDPM process for a trained network (2201.06503, theorem 1).

    σ*² = λ² + (√(β̄/α) − √(β̄_prev − λ²))²·(1 − E‖ε̂‖²/d), with λ² = β̃, β̄ = 1−ᾱ, α = ᾱ/ᾱ_prev. The statistic is
    clipped to [0, 1], which keeps σ*² within the bounds of theorem 2.

    Args:
        schedule: the schedule that is sampled.
        eps_power: the table of ``estimate_eps_power``, [S] for this schedule or [T] for the full one, or one
            for each of G groups, [S, G] or [T, G].
        data_range: (lowest, highest) value of the data, for the tighter bound of bounded data in theorem 2.

    Returns:
        [S] or [S, G] float64, for ``sample_ddpm(variance=…)``.

    Raises:
        ValueError: a table of another length or with values that are not finite, or a schedule that ends at
            ᾱ = 0.
    """
    if schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            "variance: Analytic-DPM does not tell the variance of a step from ᾱ = 0 (a schedule with zero "
            "terminal SNR), where x_t is nothing but noise; use another variance, or another schedule"
        )
    power = eps_power.detach().to(device="cpu", dtype=torch.float64)
    if power.shape[:1] == (schedule.num_train_timesteps,):
        power = power[schedule.timesteps]
    if power.shape[:1] != (len(schedule),) or power.ndim > 2 or not bool(torch.isfinite(power).all()):
        raise ValueError(
            f"eps_power: expected {len(schedule)} or {schedule.num_train_timesteps} finite numbers; "
            f"found shape {tuple(eps_power.shape)}"
        )

    def column(table: Tensor) -> Tensor:
        return table if power.ndim == 1 else table[:, None]

    noise = 1 - schedule.alphas_cumprod
    noise_prev = 1 - schedule.alphas_cumprod_prev
    small = schedule.posterior_variance
    kept = (noise_prev - small).clamp(min=0).sqrt()
    spread = ((noise / (1 - schedule.betas)).sqrt() - kept).square()
    variance = column(small) + column(spread) * (1 - power.clamp(0, 1))
    if data_range is not None:
        low, high = data_range
        reach = schedule.alphas_cumprod_prev.sqrt() - kept * (schedule.alphas_cumprod / noise).sqrt()
        variance = torch.minimum(variance, column(small + reach.square() * ((high - low) / 2) ** 2))
    return variance
