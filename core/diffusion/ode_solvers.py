"""Deterministic samplers besides those of ``samplers``: the probability flow solved in other ways."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .denoiser import Denoiser
from .samplers import (
    StepCallback,
    ddim_update,
    descending,
    evaluate,
    half_log_snr,
    renoised,
    report,
    require_finite,
    sample_ddim,
    start,
)
from .schedule import Schedule


def sample_euler(
    denoiser: Denoiser, x: Tensor, schedule: Schedule, *, callback: StepCallback | None = None
) -> Tensor:
    """Euler's method on σ = √(1−ᾱ)/√ᾱ (Karras et al. 2206.00364, algorithm 1, without its second half).

    With x̂ = x/√ᾱ the step x̂ + (σ'−σ)·(x̂ − x̂_0)/σ is x̂_0 + σ'/σ·(x̂ − x̂_0), which is DDIM's with eta 0:
    one and the same sampler, under the name that other tools give it.
    """
    return sample_ddim(denoiser, x, schedule, callback=callback)


@torch.no_grad()
def sample_heun(
    denoiser: Denoiser, x: Tensor, schedule: Schedule, *, callback: StepCallback | None = None
) -> Tensor:
    """Heun's method on σ (2206.00364, algorithm 1 with S_churn = 0): two network calls a step, the last one.

    With D of the step's start and D' of where Euler's step ends, its update is DDIM's along
    D + σ/2σ'·(D' − D). That weight, ½ for small steps, is kept at 1 or less: where σ more than halves in one
    step it would reach beyond both predictions, and on a cosine schedule, whose σ falls by a hundredfold in
    the first of 25 steps, it would tear the sample apart.
    """
    x = start(x, None)
    for index in descending(schedule):
        x, prediction = evaluate(denoiser, x, schedule, index)
        here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
        target = prediction.x0
        if index > 0:
            ahead = denoiser(ddim_update(x, target, here, there), index - 1).x0
            target = target + _heun_weight(here, there) * (ahead - target)
        x = ddim_update(x, target, here, there)
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


def _heun_weight(here: float, there: float) -> float:
    """σ/2σ' of two noise levels ᾱ, at most 1."""
    ratio = math.exp(min(half_log_snr(there) - half_log_snr(here), 1.0))
    return min(ratio / 2, 1.0)


@torch.no_grad()
def sample_unipc(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    order: int = 2,
    callback: StepCallback | None = None,
) -> Tensor:
    """UniPC (Zhao et al. 2302.04867, algorithms 1 and 2) with x̂_0 predictions and B(h) = e^−h − 1.

    The predictor extrapolates the last predictions as DPM-Solver++ does. The corrector takes the same step
    again once the prediction at its end is known, which costs no further network call and raises the order by
    one. As in diffusers' ``UniPCMultistepScheduler`` (``bh2``), orders 2 of the predictor and 1 of the
    corrector have the weight ½, and the last step returns x̂_0.

    Args:
        order: of the predictor, 1 to 3; the sampler's is one more.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order: found {order}, expected 1 to 3")
    x = start(x, None)
    past: list[tuple[float, Tensor]] = []  # (λ, x̂_0), the latest last
    before: Tensor | None = None  # the state from which the last step went
    used = 0  # the order of that step
    for index in descending(schedule):
        prediction = denoiser(x, index)
        here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
        now = half_log_snr(here), prediction.x0
        # What the last step, back to the clean sample, makes of x does not hang on x.
        if before is not None and past and index > 0:
            behind = schedule.alphas_cumprod[index + 1].item()
            x = ddim_update(before, _unipc_target(past[-used:], now[0], now[1]), behind, here)
        x = before = renoised(x, prediction, here)
        if math.isfinite(now[0]):  # pure noise is no place to extrapolate from
            past = [*past[-order + 1 :], now] if order > 1 else [now]
        used = min(order, len(past), index + 1)
        target = prediction.x0
        if used > 1:
            target = _unipc_target(past[-used:], half_log_snr(there))
        x = ddim_update(x, target, here, there)
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


def _unipc_target(past: list[tuple[float, Tensor]], to: float, ahead: Tensor | None = None) -> Tensor:
    """What DDIM's step to λ = ``to`` runs along, by the predictions behind it and, to correct, at its end.

    x̂_0 + Σ ρ_k·(x̂_0,k − x̂_0)/r_k with R·ρ = b (2302.04867, eq. 5 to 8).
    """
    *older, (origin, x0) = past
    h = to - origin
    ratios = [(each - origin) / h for each, _ in reversed(older)]
    slopes = [(value - x0) / ratio for ratio, (_, value) in zip(ratios, reversed(older), strict=True)]
    if ahead is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, ahead - x0]
    if not slopes:
        return x0
    if len(slopes) == 1:
        return x0 + 0.5 * slopes[0]
    phi = math.expm1(-h)
    powers, rights, part, factorial = [], [], phi / -h - 1, 1
    for k in range(1, len(slopes) + 1):
        powers.append([ratio ** (k - 1) for ratio in ratios])
        rights.append(part * factorial / phi)
        factorial *= k + 1
        part = part / -h - 1 / factorial
    weights = torch.linalg.solve(
        torch.tensor(powers, dtype=torch.float64), torch.tensor(rights, dtype=torch.float64)
    )
    for weight, slope in zip(weights.tolist(), slopes, strict=True):
        x0 = x0 + weight * slope
    return x0
