"""The algebra between x_t, x_0, ε and v, for one noise level or one per row.

Coefficients are √ᾱ and √(1−ᾱ): Python floats, or tensors that broadcast against the samples.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from .spec import PredictionType

Coefficient = float | Tensor


def add_noise(x0: Tensor, noise: Tensor, signal: Coefficient, sigma: Coefficient) -> Tensor:
    """x_t = √ᾱ·x_0 + √(1−ᾱ)·ε (DDPM, eq. 4)."""
    return signal * x0 + sigma * noise


def to_target(
    x0: Tensor, noise: Tensor, signal: Coefficient, sigma: Coefficient, prediction: PredictionType
) -> Tensor:
    """What a network of this prediction type should put out for a sample and its noise.

    v = √ᾱ·ε − √(1−ᾱ)·x_0 (Salimans & Ho 2202.00512, appendix D).
    """
    if prediction == "eps":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "v":
        return signal * noise - sigma * x0
    raise ValueError(unknown_prediction(prediction))


def to_x0(
    output: Tensor, x: Tensor, signal: Coefficient, sigma: Coefficient, prediction: PredictionType
) -> Tensor:
    """x̂_0 from a network's output at x_t; eps divides by √ᾱ (DDPM, eq. 15), v does not."""
    if prediction == "eps":
        return (x - sigma * output) / signal
    if prediction == "x0":
        return output
    if prediction == "v":
        return signal * x - sigma * output
    raise ValueError(unknown_prediction(prediction))


def to_eps(x0: Tensor, x: Tensor, signal: Coefficient, sigma: Coefficient) -> Tensor:
    """ε̂ = (x_t − √ᾱ·x̂_0) / √(1−ᾱ): the noise that goes with a predicted clean sample."""
    return (x - signal * x0) / sigma


def interpolate_log_variance(output: Tensor, log_small: Coefficient, log_large: Coefficient) -> Tensor:
    """Learned range: log Σ = f·log β + (1−f)·log β̃, with f = (output + 1)/2 (Improved DDPM, eq. 15)."""
    fraction = (output + 1) / 2
    return fraction * log_large + (1 - fraction) * log_small


def unknown_prediction(prediction: str) -> str:
    return f"prediction: found {prediction!r}, expected one of {', '.join(get_args(PredictionType))}"
