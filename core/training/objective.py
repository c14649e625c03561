"""The objective of decoders and upsamplers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.draws import draw_uniform
from ..diffusion.losses import hybrid_loss, min_snr_weights, prediction_target, simple_loss
from ..diffusion.schedule import Schedule
from ..diffusion.spec import DiffusionSpec
from ..networks.unet_config import UNetConfig


def denoising_loss(
    schedule: Schedule,
    spec: DiffusionSpec,
    min_snr_gamma: float | None,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    t: Tensor,
) -> Tensor:
    """L_simple with min-SNR weights (2303.09556), and with learned variance L_vlb as well. [B] float32.

    Args:
        min_snr_gamma: None weighs all timesteps alike.
        output: of the network, [B, C, H, W]; [B, 2C, H, W] with learned variance.
        x0, x_t, noise: [B, C, H, W].
        t: [B] int64, indices into the schedule.
    """
    weights: Tensor | float = 1.0
    if min_snr_gamma is not None:
        weights = min_snr_weights(schedule, t, min_snr_gamma, spec.prediction)
    if spec.variance != "learned_range":
        return weights * simple_loss(output, prediction_target(schedule, x0, noise, t, spec.prediction))
    terms = hybrid_loss(schedule, output, x0, x_t, noise, t, spec.prediction)
    return terms.total + (weights - 1) * terms.simple


def draw_timesteps(rows: int, timesteps: int, shift: float, generator: torch.Generator) -> Tensor:
    """[rows] int64 timesteps in 0..timesteps−1, u uniform moved to shift·u / (1 + (shift − 1)·u).

    The shift of Stable Diffusion 3 (2403.03206, equation 23). Large flat shapes show through much noise, so
    where pictures consist of them, most of what they are is decided at the very first steps of sampling.
    """
    u = draw_uniform((rows,), generator)
    shifted = shift * u / (1 + (shift - 1) * u)
    return (shifted * timesteps).long().clamp(max=timesteps - 1)


def require_outputs(model: UNetConfig, spec: DiffusionSpec) -> None:
    """Raise a ValueError unless the network puts out what the diffusion spec needs."""
    expected = model.in_channels * (2 if spec.variance == "learned_range" else 1)
    if model.out_channels != expected:
        raise ValueError(
            f"model.out_channels is {model.out_channels}, expected {expected} with the variance "
            f"{spec.variance!r} of {model.in_channels} channels"
        )
