"""Samplers: plain functions from noise x_T and a denoiser to a clean sample.

All take x [B, …], go through the schedule from its noisiest index to index 0 and then to the clean sample,
keep their state in float32, report each step to a callback (which may raise, to interrupt), and run without
gradients. ``sampling`` gives them their names; further ones have files of their own and share what stands at
the end of this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .noise import draw_noise
from .schedule import Schedule
from .spec import VarianceType

# Below this number of steps DPM-Solver++ takes its last step before the clean sample with first order.
FEW_STEPS = 15


@dataclass(frozen=True, eq=False)
class SamplerStep:
    """A finished step.

    Attributes:
        index: how many steps were finished before, 0 … total−1.
        total: number of steps.
        x: the state after the step, [B, …] float32.
        x0: the denoiser's x̂_0 in this step, [B, …] float32: what a preview shows.
    """

    index: int
    total: int
    x: Tensor
    x0: Tensor


StepCallback = Callable[[SamplerStep], None]


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator] | None,
    variance: VarianceType | Tensor = "fixed_small",
    callback: StepCallback | None = None,
) -> Tensor:
    """Ancestral sampling (DDPM, algorithm 2), with the posterior mean of eq. 7. The final step adds no noise.

    Args:
        generators: one for each row of x.
        variance: of the reverse step: ``fixed_small`` β̃, ``fixed_large`` β, ``learned_range`` the denoiser's
            own, or a table [S] of variances, or [S, B] of those of each row (see ``analytic``).
    """
    x = start(x, generators)
    generators = require_generators("ddpm", generators, schedule)
    std = _std_table(variance, schedule, x)
    for index in descending(schedule):
        x, prediction = evaluate(denoiser, x, schedule, index)
        coef1 = schedule.posterior_mean_coef1[index].item()
        coef2 = schedule.posterior_mean_coef2[index].item()
        x = coef1 * prediction.x0 + coef2 * x
        if index > 0:
            x = x + fresh_noise(generators, x) * (learned_std(prediction) if std is None else std[index])
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


@torch.no_grad()
def sample_ddim(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """DDIM (2010.02502, eq. 12). eta 0 is deterministic; eta 1 has the law of ddpm with ``fixed_small``.

    ε̂ is derived from the denoiser's x̂_0, so that clamping x̂_0 acts on both terms, as in guided-diffusion.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: found {eta}, expected a number within 0…1")
    x = start(x, generators)
    generators = require_generators(f"ddim with eta {eta}", generators, schedule) if eta > 0 else ()
    for index in descending(schedule):
        x, prediction = evaluate(denoiser, x, schedule, index)
        here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
        sigma = ddim_sigma(here, there, eta)
        noise = fresh_noise(generators, x) if sigma > 0 else None
        x = ddim_update(x, prediction.x0, here, there, sigma, noise)
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


def ddim_sigma(alpha_here: float, alpha_there: float, eta: float) -> float:
    """σ = η·√((1−ᾱ_prev)/(1−ᾱ))·√(1−ᾱ/ᾱ_prev) (DDIM, eq. 16)."""
    return eta * math.sqrt((1 - alpha_there) / (1 - alpha_here)) * math.sqrt(1 - alpha_here / alpha_there)


def ddim_update(
    x: Tensor,
    x0: Tensor,
    alpha_here: float,
    alpha_there: float,
    sigma: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Move x from the noise level ᾱ_here to ᾱ_there along x̂_0 and its ε̂ (DDIM, eq. 12).

    x' = √ᾱ'·x̂_0 + √(1−ᾱ'−σ²)·ε̂ + σ·noise, with ε̂ = (x − √ᾱ·x̂_0)/√(1−ᾱ). ᾱ_there > ᾱ_here denoises;
    ᾱ_there < ᾱ_here with σ = 0 is the same step run backwards, towards noise. Needs ᾱ_here < 1.
    """
    direction = math.sqrt(max(1 - alpha_there - sigma**2, 0.0) / (1 - alpha_here))
    x = (math.sqrt(alpha_there) - direction * math.sqrt(alpha_here)) * x0 + direction * x
    return x if noise is None else x + sigma * noise


@torch.no_grad()
def sample_dpmpp_2m(
    denoiser: Denoiser, x: Tensor, schedule: Schedule, *, callback: StepCallback | None = None
) -> Tensor:
    """DPM-Solver++(2M) (2211.01095, algorithm 2), deterministic.

    Its update is DDIM's with x̂_0 extrapolated from the last two predictions. The step to the clean sample has
    infinite length in λ = log(√ᾱ/√(1−ᾱ)) and is first order: it returns x̂_0. With fewer than 15 steps so is
    the one before it, the last of finite length (``lower_order_final`` of the reference solver): it is then
    much longer in λ than its predecessor, and the extrapolation would overshoot.
    """
    x = start(x, None)
    previous: Tensor | None = None
    h_previous = math.inf
    for index in descending(schedule):
        x, prediction = evaluate(denoiser, x, schedule, index)
        here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
        h = half_log_snr(there) - half_log_snr(here)
        target = prediction.x0
        if previous is not None and not of_first_order(schedule, index):
            target = extrapolated(target, previous, h, h_previous)
        x = ddim_update(x, target, here, there)
        previous, h_previous = prediction.x0, h
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


def of_first_order(schedule: Schedule, index: int) -> bool:
    """Whether the step from an index must not extrapolate, see :func:`sample_dpmpp_2m`."""
    return index == 0 or (index == 1 and len(schedule) < FEW_STEPS)


def extrapolated(x0: Tensor, previous: Tensor, h: float, h_previous: float) -> Tensor:
    """D = (1 + 1/2r)·x̂_0 − 1/2r·x̂_0(previous) with r = h_previous/h: x̂_0 half a step on, to second order.

    x̂_0 itself after a step of infinite length, from pure noise.
    """
    return x0 + (h / (2 * h_previous)) * (x0 - previous) if math.isfinite(h_previous) else x0


def half_log_snr(alpha: float) -> float:
    """λ = log(√ᾱ/√(1−ᾱ)) of a noise level ᾱ; −∞ at pure noise, ∞ at the clean sample."""
    if alpha <= 0:
        return -math.inf
    return math.inf if alpha >= 1 else 0.5 * (math.log(alpha) - math.log1p(-alpha))


def _std_table(
    variance: VarianceType | Tensor, schedule: Schedule, x: Tensor
) -> list[float] | list[Tensor] | None:
    """Standard deviations for each index, or [B, 1, …] of each row; None where the denoiser gives them."""
    if isinstance(variance, Tensor):
        table = variance.detach().to(device="cpu", dtype=torch.float64)
        steps = len(schedule)
        if table.shape not in ((steps,), (steps, len(x))) or not bool((table >= 0).all()):
            raise ValueError(
                f"variance: expected a table of {steps} variances, none negative, one for each step, or as "
                f"many for each of {len(x)} rows; found shape {tuple(table.shape)}"
            )
        std = table.sqrt()
        if std.ndim == 1:
            return std.tolist()
        return list(std.to(x).reshape(*std.shape, *(1,) * (x.ndim - 1)))
    if variance == "fixed_small":
        return schedule.posterior_variance.sqrt().tolist()
    if variance == "fixed_large":
        return schedule.betas.sqrt().tolist()
    if variance == "learned_range":
        return None
    raise ValueError(
        f"variance: found {variance!r}, expected a table or one of {', '.join(get_args(VarianceType))}"
    )


def learned_std(prediction: Prediction) -> Tensor:
    """The standard deviation of the reverse step that the network gives; a ValueError where it gives none."""
    if prediction.log_variance is None:
        raise ValueError(
            "variance: 'learned_range' needs a network that predicts its variance; this one does not"
        )
    return (0.5 * prediction.log_variance).exp()


def evaluate(denoiser: Denoiser, x: Tensor, schedule: Schedule, index: int) -> tuple[Tensor, Prediction]:
    """The denoiser's prediction at x, and x as the step from there is to take it, see :func:`renoised`."""
    prediction = denoiser(x, index)
    return renoised(x, prediction, schedule.alphas_cumprod[index].item()), prediction


def renoised(x: Tensor, prediction: Prediction, alpha: float) -> Tensor:
    """x with the noise that a prediction wants added again: x itself, unless that is another one than x̂_0's.

    A step takes x apart into √ᾱ·x̂_0 and noise. x + √ᾱ·(x̂_0 − x̂_0') leaves it the noise of x̂_0' beside the
    picture x̂_0, whatever the step makes of both: so any sampler is one of CFG++ (2406.08070, algorithm 1).
    """
    if prediction.renoise is None:
        return x
    return x + math.sqrt(alpha) * (prediction.x0 - prediction.renoise)


def descending(schedule: Schedule) -> Iterator[int]:
    """The indices of a schedule from its noisiest to 0."""
    return reversed(range(len(schedule)))


def start(x: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """x_T as float32; a ValueError unless it is finite, with a generator for each row where there are any."""
    if generators is not None and len(generators) != x.shape[0]:
        raise ValueError(
            f"generators: found {len(generators)} for a batch of {x.shape[0]}; expected one for each image"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            "noise: the starting noise holds NaN or infinite values; expected standard normal noise"
        )
    return x.float()


def require_generators(
    sampler: str, generators: Sequence[torch.Generator] | None, schedule: Schedule
) -> Sequence[torch.Generator]:
    """The generators of a sampler that adds noise in every step but the last; a ValueError without any."""
    if generators is None and len(schedule) > 1:
        raise ValueError(
            f"generators: the sampler {sampler} adds noise and needs one for each image; found none"
        )
    return generators or ()


def fresh_noise(generators: Sequence[torch.Generator], x: Tensor) -> Tensor:
    """Standard normal noise for a step, like x; row i comes from generator i."""
    return draw_noise(generators, x.shape[1:], x.device)


def report(callback: StepCallback | None, schedule: Schedule, index: int, x: Tensor, x0: Tensor) -> None:
    """Tell the callback, if there is one, of the finished step from ``index``."""
    if callback is not None:
        callback(SamplerStep(index=len(schedule) - 1 - index, total=len(schedule), x=x, x0=x0))


def require_finite(x: Tensor) -> Tensor:
    """The sampled x; a ValueError where a network overflowed."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            "sampling gave NaN or infinite values: the network overflowed (in half precision: use fp32 or "
            "bf16), or its conditions are not finite"
        )
    return x
