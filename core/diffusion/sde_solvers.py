"""Samplers that follow the reverse SDE: fresh noise in every step but the last.

Each has, for ever more steps, the law of the reverse process. Where a network has learned its variance
(``learned``), their noise has that instead of the SDE's own β̃.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .samplers import (
    StepCallback,
    ddim_sigma,
    ddim_update,
    descending,
    evaluate,
    extrapolated,
    fresh_noise,
    half_log_snr,
    learned_std,
    of_first_order,
    renoised,
    report,
    require_finite,
    require_generators,
    sample_ddpm,
    start,
)
from .schedule import Schedule
from .spec import VarianceType

# The longest step that goes by predictions behind it, in lengths of the step before.
LONGEST_STRIDE = 2.0

Generators = Sequence[torch.Generator] | None


def sample_euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    generators: Generators,
    learned: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """Euler's method on σ with ancestral noise: σ_up² = σ'²·(σ² − σ'²)/σ², and down to √(σ'² − σ_up²).

    k-diffusion's ``sample_euler_ancestral`` with eta 1. For a variance-preserving process σ_up·√ᾱ' is
    DDIM's σ with eta 1: one and the same sampler as ddpm with β̃, under the name that other tools give it.
    """
    generators = require_generators("euler_ancestral", generators, schedule)
    variance: VarianceType = "learned_range" if learned else "fixed_small"
    return sample_ddpm(
        denoiser, x, schedule, generators=generators or None, variance=variance, callback=callback
    )


@torch.no_grad()
def sample_dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    generators: Generators,
    learned: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (2211.01095, section 5 and appendix B; midpoint form, as in k-diffusion).

    Its step is that of ddpm along x̂_0 extrapolated from the last two predictions; for the last steps see
    ``sample_dpmpp_2m``. Other than upstream, a step more than twice as long in λ as the one before, such as
    the last one of evenly spaced timesteps, does not extrapolate: it would make a multiple of the noise that
    is in the difference of two predictions.
    """
    x = start(x, generators)
    generators = require_generators("dpmpp_2m_sde", generators, schedule)
    previous: Tensor | None = None
    h_previous = math.inf
    for index in descending(schedule):
        x, prediction = evaluate(denoiser, x, schedule, index)
        h = _length(schedule, index)
        target = prediction.x0
        if previous is not None and _may_extrapolate(schedule, index, h, h_previous):
            target = extrapolated(target, previous, h, h_previous)
        x = _sde_step(x, target, schedule, index, prediction if learned else None, generators)
        previous, h_previous = prediction.x0, h
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


@torch.no_grad()
def sample_dpmpp_3m_sde(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    generators: Generators,
    learned: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++ with the last three predictions (k-diffusion's ``sample_dpmpp_3m_sde``, eta 1).

    For what does not extrapolate see :func:`sample_dpmpp_2m_sde`.
    """
    x = start(x, generators)
    generators = require_generators("dpmpp_3m_sde", generators, schedule)
    past: list[
        tuple[float, Tensor]
    ] = []  # (length in λ of the step that went from it, x̂_0), the latest first
    for index in descending(schedule):
        x, prediction = evaluate(denoiser, x, schedule, index)
        h = _length(schedule, index)
        target = prediction.x0
        if past and _may_extrapolate(schedule, index, h, past[0][0]):
            target = _with_slopes(target, h, past)
        x = _sde_step(x, target, schedule, index, prediction if learned else None, generators)
        # A step from pure noise is of infinite length: nothing is known of what lies on it.
        past = [(h, prediction.x0), *past[:1]] if math.isfinite(h) else []
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


def _with_slopes(x0: Tensor, h: float, past: Sequence[tuple[float, Tensor]]) -> Tensor:
    """x̂_0 + (φ_2·d_1 − φ_3·d_2)/φ_1 of a step of length h in λ, by one prediction behind it or two.

    d_1 and d_2 are first and second divided differences in λ/h; φ_1 = 1 − e^−2h, φ_2 = 1 − φ_1/2h and
    φ_3 = φ_2/2h − ½.
    """
    double = 2 * h
    phi1 = -math.expm1(-double)
    phi2 = 1 - phi1 / double
    (h1, x1), *further = past
    first = (x0 - x1) * (h / h1)
    if not further:
        return x0 + (phi2 / phi1) * first
    (h2, x2) = further[0]
    second = (first - (x1 - x2) * (h / h2)) * (h / (h1 + h2))
    slope = first + second * (h1 / h)
    return x0 + (phi2 / phi1) * slope - ((phi2 / double - 0.5) / phi1) * second


def middle_of_time(time: float) -> float:
    """τ of :func:`sample_sa_solver`, upstream's default: 1 within 0.2…0.8 of the time t/T, elsewhere 0."""
    return 1.0 if 0.2 <= time <= 0.8 else 0.0


@torch.no_grad()
def sample_sa_solver(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    generators: Generators,
    learned: bool = False,
    tau: Callable[[float], float] = middle_of_time,
    order: int = 2,
    simple: bool = False,
    callback: StepCallback | None = None,
) -> Tensor:
    """SA-Solver (Xue et al. 2309.05019, algorithm 1): a stochastic Adams predictor and corrector.

    The corrector takes the last step again, with its noise, once the prediction at its end is known: no
    further network call. The step before the clean sample is of first order, the last returns x̂_0.

    Args:
        tau: of the time t/T in 0…1 at which a step begins, how random it is: 0 follows the probability flow,
            1 the reverse SDE. Any has the law of the data.
        order: number of predictions that a step goes by, in predictor and corrector; 1 to 4.
        simple: with two predictions, the weights of the paper's appendix D, which differ by terms of higher
            order. Without, those of the exact integral: they stay bounded in long steps.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order: found {order}, expected 1 to 4")
    x = start(x, generators)
    generators = require_generators("sa_solver", generators, schedule)
    past: list[tuple[float, Tensor]] = []  # (λ, x̂_0), the latest last
    before: Tensor | None = None
    noise: Tensor | float = 0.0
    randomness = 0.0
    for index in descending(schedule):
        prediction = denoiser(x, index)
        here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
        if math.isfinite(half_log_snr(here)):  # pure noise is no place to extrapolate from
            past = [*past, (half_log_snr(here), prediction.x0)][-order:]
        if before is not None and index > 0:
            behind = schedule.alphas_cumprod[index + 1].item()
            used = past[-min(order, index + 1) :]
            x = _adams(before, used, behind, here, randomness, simple, corrects=True) + noise
        x = before = renoised(x, prediction, here)
        if index == 0:
            x = prediction.x0
        else:
            randomness = tau(int(schedule.timesteps[index]) / schedule.num_train_timesteps)
            used = past[-min(order, index) :] or [(-math.inf, prediction.x0)]
            x = _adams(x, used, here, there, randomness, simple)
            noise = _adams_noise(x, here, there, randomness, prediction if learned else None, generators)
            x = x + noise
        report(callback, schedule, index, x, prediction.x0)
    return require_finite(x)


def _adams(
    x: Tensor,
    past: Sequence[tuple[float, Tensor]],
    here: float,
    there: float,
    tau: float,
    simple: bool,
    corrects: bool = False,
) -> Tensor:
    """SA-Solver's step without its noise (2309.05019, eq. 14 and 17), x̂_0 interpolated through ``past``."""
    begin, end = half_log_snr(here), half_log_snr(there)
    h, rate = end - begin, 1 + tau**2
    signal, whole = math.sqrt(there), -math.expm1(-rate * (end - begin))
    if len(past) == 1:
        weights = [whole]
    elif simple and len(past) == 2:
        # At the step's own beginning the slope's share is ½·(1+τ²)·h, whichever end it reaches to.
        share = rate * h / 2 * (1 if corrects else h / (past[0][0] - begin))
        weights = [whole - share, share] if corrects else [share, whole - share]
    else:
        weights = _integrals([each - end for each, _ in past], h, rate)
    decay = math.exp(-(tau**2) * h) if tau > 0 else 1.0  # h may be infinite
    x = math.sqrt((1 - there) / (1 - here)) * decay * x
    for weight, (_, x0) in zip(weights, past, strict=True):
        x = x + (signal * weight) * x0
    return x


def _integrals(places: Sequence[float], h: float, rate: float) -> list[float]:
    """∫ rate·e^(rate·λ)·ℓ_k(λ) dλ from −h to 0, for the Lagrange polynomials ℓ_k through ``places``."""
    count = len(places)
    # ∫ rate·e^(rate·λ)·λ^p dλ by parts: [e^(rate·λ)·λ^p] − p/rate times the same for p − 1.
    moments = [-math.expm1(-rate * h)]
    for power in range(1, count):
        edge = 0.0 if math.isinf(h) else -math.exp(-rate * h) * (-h) ** power
        moments.append(edge - power / rate * moments[-1])
    powers = [[place**power for place in places] for power in range(count)]
    return torch.linalg.solve(
        torch.tensor(powers, dtype=torch.float64), torch.tensor(moments, dtype=torch.float64)
    ).tolist()


def _adams_noise(
    x: Tensor,
    here: float,
    there: float,
    tau: float,
    learned: Prediction | None,
    generators: Sequence[torch.Generator],
) -> Tensor | float:
    """σ'·√(1 − e^(−2τ²h))·noise; with a learned variance that much of its standard deviation."""
    if tau == 0:
        return 0.0
    h = half_log_snr(there) - half_log_snr(here)
    std = math.sqrt((1 - there) * -math.expm1(-2 * tau**2 * h))
    own = ddim_sigma(here, there, 1.0)  # what it is at τ = 1
    scale = std if learned is None else learned_std(learned) * (std / own)
    return fresh_noise(generators, x) * scale


def _may_extrapolate(schedule: Schedule, index: int, h: float, h_previous: float) -> bool:
    return not of_first_order(schedule, index) and h <= LONGEST_STRIDE * h_previous


def _length(schedule: Schedule, index: int) -> float:
    """Of the step from an index, in λ."""
    here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
    return half_log_snr(there) - half_log_snr(here)


def _sde_step(
    x: Tensor,
    x0: Tensor,
    schedule: Schedule,
    index: int,
    learned: Prediction | None,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The exact step of the reverse SDE along a constant x̂_0: that of ddpm."""
    here, there = schedule.alphas_cumprod[index].item(), schedule.alphas_cumprod_prev[index].item()
    sigma = ddim_sigma(here, there, 1.0)
    x = ddim_update(x, x0, here, there, sigma)
    if index == 0:
        return x
    return x + fresh_noise(generators, x) * (sigma if learned is None else learned_std(learned))
