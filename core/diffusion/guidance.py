"""Classifier-free guidance as a wrapper around denoisers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .schedule import Schedule


class GuidedDenoiser:
    """x̂_0 = null + scale·(conditional − null) (classifier-free guidance, 2207.12598, eq. 6, on x̂_0).

    Guidance on x̂_0, ε̂ and v̂ is the same thing: at a given x_t each is an affine function of the other, and
    the weights add up to one. The log-variance is the conditional one.

    Args:
        conditional: a denoiser of B rows; alone it serves scale 1 and the steps outside the interval.
        both: a denoiser of 2B rows, the conditional ones first, then as many null ones; both halves get the
            same x_t.
        schedule: the schedule that is sampled.
        scale: 1 is the conditional prediction, 0 the null one.
        interval: guide only where the time t/(T−1) lies within, 0 the clean sample, 1 pure noise (guidance
            interval, Kynkäänniemi et al. 2404.07724).
        rescale: φ within [0, 1], how far the guided x̂_0 is brought back to the standard deviation of the
            conditional one, per image (Lin et al. 2305.08891, eq. 15–16).
    """

    def __init__(
        self,
        conditional: Denoiser,
        both: Denoiser,
        schedule: Schedule,
        scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
    ) -> None:
        low, high = interval
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale: found {scale}, expected a finite number")
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval: found {low}…{high}, expected a start and an end within 0…1, "
                "the start not above the end"
            )
        if not 0 <= rescale <= 1:
            raise ValueError(f"guidance_rescale: found {rescale}, expected a number within 0…1")
        self.conditional = conditional
        self.both = both
        self.scale = scale
        self.rescale = rescale
        time = schedule.timesteps.double() / max(schedule.num_train_timesteps - 1, 1)  # [S]
        self._guided = (scale != 1) & (time >= low) & (time <= high)

    def guides(self, step: int) -> bool:
        """Whether the null branch is needed at this step."""
        return bool(self._guided[step])

    def __call__(self, x: Tensor, step: int) -> Prediction:
        if not self.guides(step):
            return self.conditional(x, step)
        prediction = self.both(torch.cat([x, x]), step)  # 2B rows
        conditional, null = prediction.x0.chunk(2)
        x0 = null + self.scale * (conditional - null)
        if self.rescale:
            x0 = x0 * (1 - self.rescale + self.rescale * _spread(conditional) / _spread(x0))
        log_variance = prediction.log_variance
        return Prediction(x0, None if log_variance is None else log_variance.chunk(2)[0])


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each row, [B, 1, …, 1]; kept above zero, since a constant image has none."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True).clamp(min=1e-8)
