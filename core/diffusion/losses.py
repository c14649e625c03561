"""Training objectives of diffusion networks. Losses are per sample, [B]; t is [B] int64, schedule indices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import parameterization as param
from .schedule import Schedule
from .spec import PredictionType

# Pixels are 8 bit in [−1, 1]: a level is 2/255 wide (DDPM, eq. 13).
HALF_LEVEL = 1 / 255


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Draw x_t given x_0 and standard normal noise (DDPM, eq. 4).

    Args:
        x0, noise: [B, …]; float32 is kept, half precision is promoted.
        t: [B] int64, index into the schedule (the timestep itself, for a full schedule).
    """
    signal, sigma = _coefficients(schedule, t, x0)
    return param.add_noise(x0, noise, signal, sigma)


def prediction_target(
    schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor, prediction: PredictionType
) -> Tensor:
    """What the network should put out: ε, x_0, or v = √ᾱ·ε − √(1−ᾱ)·x_0. Shape of ``x0``."""
    signal, sigma = _coefficients(schedule, t, x0)
    return param.to_target(x0, noise, signal, sigma, prediction)


def predicted_x0(
    schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor, prediction: PredictionType
) -> Tensor:
    """x̂_0 from the network's output (without its variance half), float32. Shape of ``x_t``."""
    signal, sigma = _coefficients(schedule, t, x_t)
    return param.to_x0(output.float(), x_t.float(), signal, sigma, prediction)


def simple_loss(output: Tensor, target: Tensor) -> Tensor:
    """L_simple (DDPM, eq. 14): squared error, mean over everything but the batch. [B] float32."""
    if output.shape != target.shape:
        raise ValueError(f"simple_loss: output {tuple(output.shape)} and target {tuple(target.shape)} differ")
    return (output.float() - target.float()).square().flatten(1).mean(dim=1)


def min_snr_weights(schedule: Schedule, t: Tensor, gamma: float, prediction: PredictionType) -> Tensor:
    """Min-SNR-γ weights of ``simple_loss`` by prediction type (Hang et al. 2303.09556, §3.4). [B] float32.

    The weight on x_0's squared error is min(SNR, γ). ε's and v's squared errors are SNR and SNR + 1 times
    x_0's, so their weights are min(SNR, γ)/SNR and min(SNR, γ)/(SNR + 1).
    """
    if not gamma > 0:
        raise ValueError(f"gamma: found {gamma}, expected a positive number (5 is customary)")
    snr = schedule.table("snr", t.device)[t]
    if prediction == "x0":
        return snr.clamp(max=gamma)
    if prediction == "eps":
        return (gamma / snr).clamp(max=1)  # = min(SNR, γ)/SNR, also where SNR = 0
    if prediction == "v":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(param.unknown_prediction(prediction))


@dataclass(frozen=True, eq=False)
class HybridLoss:
    """Per-sample terms, each [B] float32: total = simple + λ·T·vlb; vlb in bits per dimension."""

    total: Tensor
    simple: Tensor
    vlb: Tensor


def hybrid_loss(
    schedule: Schedule,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    t: Tensor,
    prediction: PredictionType,
    *,
    vlb_weight: float = 0.001,
) -> HybridLoss:
    """L_hybrid = L_simple + λ·L_vlb of a learned-range network (Improved DDPM, eq. 16).

    L_vlb is a sum over the T timesteps, of which one is drawn uniformly, hence the factor T on its term.
    The mean is detached in L_vlb: that term trains the variance alone. Terms are means over dimensions, in
    bits, as in guided-diffusion's ``gaussian_diffusion.py`` (where λ·T appears as ``num_timesteps / 1000``).

    Args:
        output: [B, 2C, …], the prediction and the variance interpolation.
        x0, x_t, noise: [B, C, …]; x0 in [−1, 1], 8-bit levels.
    """
    if output.shape[1] != 2 * x_t.shape[1]:
        raise ValueError(
            f"hybrid_loss: a learned-range network puts out {2 * x_t.shape[1]} channels for {x_t.shape[1]}; "
            f"found {output.shape[1]}"
        )
    mean_output, range_output = output.float().chunk(2, dim=1)  # 2 × [B, C, …]
    simple = simple_loss(mean_output, prediction_target(schedule, x0, noise, t, prediction))

    x0_hat = predicted_x0(schedule, mean_output.detach(), x_t, t, prediction)
    log_variance = param.interpolate_log_variance(
        range_output,
        schedule.gather("posterior_log_variance_clipped", t, x_t),
        schedule.gather("log_betas", t, x_t),
    )
    vlb = vlb_term(schedule, posterior_mean(schedule, x0_hat, x_t, t), log_variance, x0, x_t, t)
    return HybridLoss(total=simple + vlb_weight * len(schedule) * vlb, simple=simple, vlb=vlb)


def posterior_mean(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Mean of q(x_{t−1} | x_t, x_0) (DDPM, eq. 7); x0 itself at t = 0."""
    coef1 = schedule.gather("posterior_mean_coef1", t, x_t)
    coef2 = schedule.gather("posterior_mean_coef2", t, x_t)
    return coef1 * x0 + coef2 * x_t


def vlb_term(
    schedule: Schedule, mean: Tensor, log_variance: Tensor, x0: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """One term of the variational bound, L_{t−1} (DDPM, eq. 5), in bits per dimension. [B] float32.

    t > 0: KL(q(x_{t−1} | x_t, x_0) ‖ N(mean, exp(log_variance))). t = 0: the negative log-likelihood of 8-bit
    data under the discretised Gaussian.

    Args:
        mean, log_variance: of the network's reverse step, [B, …] (log_variance may broadcast).
        x0: [B, …] in [−1, 1].
    """
    x0, x_t = x0.float(), x_t.float()
    true_mean = posterior_mean(schedule, x0, x_t, t)
    true_log_variance = schedule.gather("posterior_log_variance_clipped", t, x_t)
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)

    first = (t == 0).reshape(-1, *(1,) * (x_t.ndim - 1))
    # Both branches are computed; rows that do not use the likelihood get a harmless argument, so that
    # no overflow of theirs turns into NaN on the way back.
    nll = -discretized_gaussian_log_likelihood(
        torch.where(first, x0, 0.0),
        torch.where(first, mean, 0.0),
        0.5 * torch.where(first, log_variance, 0.0),
    )
    return torch.where(first, nll, kl).flatten(1).mean(dim=1) / math.log(2)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, e^log_variance1) ‖ N(mean2, e^log_variance2)) per element, in nats."""
    difference = log_variance1 - log_variance2
    # expm1, for the difference is small wherever β̃ ≈ β, and the KL goes with its square.
    spread = torch.expm1(difference) - difference
    return 0.5 * (spread + (mean1 - mean2).square() * (-log_variance2).exp())


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the mass of N(mean, e^{2·log_scale}) on the 8-bit level of x in [−1, 1] (DDPM, eq. 13), in nats.

    The outermost levels reach to infinity. The tails are taken through log Φ, so that far-off means keep a
    finite likelihood and a gradient.
    """
    inverse_scale = (-log_scale).exp()
    lower = (x - mean - HALF_LEVEL) * inverse_scale
    upper = (x - mean + HALF_LEVEL) * inverse_scale
    # Φ(upper) − Φ(lower), mirrored into the left tail where log Φ is accurate.
    right = lower + upper > 0
    near = torch.where(right, -lower, upper)
    far = torch.where(right, -upper, lower)
    log_near = torch.special.log_ndtr(near)
    gap = (log_near - torch.special.log_ndtr(far)).clamp(min=1e-30)
    inside = log_near + torch.log(-torch.expm1(-gap))
    lowest, highest = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return torch.where(x < -0.999, lowest, torch.where(x > 0.999, highest, inside))


def _coefficients(schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    return (
        schedule.gather("sqrt_alphas_cumprod", t, like),
        schedule.gather("sqrt_one_minus_alphas_cumprod", t, like),
    )
