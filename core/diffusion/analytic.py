"""Analytic-DPM (Bao et al. 2201.06503): optimal reverse variances from one statistic per timestep."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from . import parameterization as param
from .denoiser import Denoiser
from .schedule import Schedule


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
            signal = schedule.sqrt_alphas_cumprod[index].item()
            sigma = schedule.sqrt_one_minus_alphas_cumprod[index].item()
            noise = torch.randn(x0.shape, generator=generator, dtype=torch.float32).to(x0.device)
            x = param.add_noise(x0.float(), noise, signal, sigma)
            eps = param.to_eps(denoiser(x, index).x0, x, signal, sigma)
            total[index] += eps.double().square().sum().item()
        count += x0.numel()
    if count == 0:
        raise ValueError("batches: found none; the Analytic-DPM table needs training samples")
    return total / count


def analytic_variance(
    schedule: Schedule, eps_power: Tensor, *, data_range: tuple[float, float] | None = None
) -> Tensor:
    """Optimal reverse variances of the DDPM process for a trained network (2201.06503, theorem 1).

    σ*² = λ² + (√(β̄/α) − √(β̄_prev − λ²))²·(1 − E‖ε̂‖²/d), with λ² = β̃, β̄ = 1−ᾱ, α = ᾱ/ᾱ_prev. The statistic is
    clipped to [0, 1], which keeps σ*² within the bounds of theorem 2.

    Args:
        schedule: the schedule that is sampled.
        eps_power: the table of ``estimate_eps_power``, [S] for this schedule or [T] for the full one.
        data_range: (lowest, highest) value of the data, for the tighter bound of bounded data in theorem 2.

    Returns:
        [S] float64, for ``sample_ddpm(variance=…)``.

    Raises:
        ValueError: a table of another length or with values that are not finite, or a schedule that ends at
            ᾱ = 0.
    """
    if schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            "eps_power: does not tell the variance of a step from ᾱ = 0 (a schedule with zero terminal SNR), "
            "where x_t is nothing but noise; use another variance, or another schedule"
        )
    power = eps_power.detach().to(device="cpu", dtype=torch.float64)
    if power.shape == (schedule.num_train_timesteps,):
        power = power[schedule.timesteps]
    if power.shape != (len(schedule),) or not bool(torch.isfinite(power).all()):
        raise ValueError(
            f"eps_power: expected {len(schedule)} or {schedule.num_train_timesteps} finite numbers; "
            f"found shape {tuple(eps_power.shape)}"
        )
    noise = 1 - schedule.alphas_cumprod
    noise_prev = 1 - schedule.alphas_cumprod_prev
    small = schedule.posterior_variance
    kept = (noise_prev - small).clamp(min=0).sqrt()
    spread = ((noise / (1 - schedule.betas)).sqrt() - kept).square()
    variance = small + spread * (1 - power.clamp(0, 1))
    if data_range is not None:
        low, high = data_range
        reach = schedule.alphas_cumprod_prev.sqrt() - kept * (schedule.alphas_cumprod / noise).sqrt()
        variance = torch.minimum(variance, small + reach.square() * ((high - low) / 2) ** 2)
    return variance
