"""The denoiser contract, and the adapters that make a network keep it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import parameterization as param
from .schedule import Schedule
from .spec import DiffusionSpec


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a denoiser says about x_t.

    Attributes:
        x0: the predicted clean sample, float32, shape of x_t.
        log_variance: of the reverse step, float32, shape of x_t, where the network learned it.
        renoise: another x̂_0, whose ε̂ the step adds again in place of that of ``x0`` (CFG++); None for
            ``x0`` itself.
    """

    x0: Tensor
    log_variance: Tensor | None = None
    renoise: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Prediction:
        """With both x̂_0 changed; the variance is kept."""
        renoise = None if self.renoise is None else function(self.renoise)
        return replace(self, x0=function(self.x0), renoise=renoise)


# (x_t [B, …] float32, step = index into the schedule that is sampled) → Prediction
Denoiser = Callable[[Tensor, int], Prediction]


class NetworkDenoiser:
    """A network's raw output turned into x̂_0 (not clamped) and, for ``learned_range``, the log-variance.

    Args:
        network: (x_t [B, C, …] float32, step) → raw output [B, C, …], or [B, 2C, …] for ``learned_range``;
            it tells its network ``schedule.timesteps[step]``, and may answer in half precision. A variance
            that it gives though the spec names a fixed one is dropped (Kandinsky 2.2).
        schedule: the schedule that is sampled (respaced).
        spec: prediction type and variance of the network.
    """

    def __init__(
        self, network: Callable[[Tensor, int], Tensor], schedule: Schedule, spec: DiffusionSpec
    ) -> None:
        if spec.prediction == "eps" and float(schedule.alphas_cumprod[-1]) == 0.0:
            raise ValueError(
                "prediction: a network that predicts the noise cannot start at ᾱ = 0 (a schedule with zero "
                "terminal SNR), where x_t is nothing but noise; use an x0 or v network, or another schedule"
            )
        self.network = network
        self.schedule = schedule
        self.spec = spec

    def __call__(self, x: Tensor, step: int) -> Prediction:
        output = self.network(x, step).float()
        learned = self.spec.variance == "learned_range"
        channels = x.shape[1] * (2 if learned else 1)
        fitting = {channels} if learned else {channels, 2 * channels}
        if output.shape[0] != len(x) or output.shape[2:] != x.shape[2:] or output.shape[1] not in fitting:
            raise ValueError(
                f"network: for an input of {tuple(x.shape)} and variance {self.spec.variance!r} its output "
                f"must have {channels} channels and otherwise the input's shape; found {tuple(output.shape)}"
            )
        log_variance = None
        output, range_output = output[:, : x.shape[1]], output[:, x.shape[1] :]  # [B, C, …] each
        if learned:
            log_variance = param.interpolate_log_variance(
                range_output,
                self.schedule.posterior_log_variance_clipped[step].item(),
                self.schedule.log_betas[step].item(),
            )
        signal = self.schedule.sqrt_alphas_cumprod[step].item()
        sigma = self.schedule.sqrt_one_minus_alphas_cumprod[step].item()
        return Prediction(param.to_x0(output, x, signal, sigma, self.spec.prediction), log_variance)


class ClampedDenoiser:
    """Clamps x̂_0 to ±limit. Wrap it around guidance, not inside."""

    def __init__(self, denoiser: Denoiser, limit: float) -> None:
        if not limit > 0:
            raise ValueError(f"limit of x0: found {limit}, expected a positive number")
        self.denoiser = denoiser
        self.limit = limit

    def __call__(self, x: Tensor, step: int) -> Prediction:
        return self.denoiser(x, step).map(lambda x0: x0.clamp(-self.limit, self.limit))


class NormedDenoiser:
    """Scales x̂_0 [B, D] to a length (DALLE2-pytorch's ``sampling_clamp_l2norm``). Wrap it around guidance."""

    def __init__(self, denoiser: Denoiser, norm: float) -> None:
        self.denoiser, self.norm = denoiser, norm

    def __call__(self, x: Tensor, step: int) -> Prediction:
        return self.denoiser(x, step).map(lambda x0: self.norm * F.normalize(x0, dim=-1))


def bounded(denoiser: Denoiser, spec: DiffusionSpec) -> Denoiser:
    """A denoiser whose x̂_0 is kept to what its spec says of it: clamped, scaled, or neither."""
    if spec.clip_x0 is not None:
        denoiser = ClampedDenoiser(denoiser, spec.clip_x0)
    return denoiser if spec.norm_x0 is None else NormedDenoiser(denoiser, spec.norm_x0)


class DynamicThresholdDenoiser:
    """Dynamic thresholding of x̂_0 (Imagen 2205.11487, §2.3). Wrap it around guidance, not inside.

    Per image, s is the given quantile of |x̂_0|; where s exceeds ``limit``, x̂_0 is clamped to ±s and scaled by
    limit/s, otherwise it is clamped to ±limit.

    Args:
        quantile: share of the values that stay unclamped, within (0, 1]; Imagen's p = 99.5% is 0.995.
        limit: range of the data.
    """

    def __init__(self, denoiser: Denoiser, quantile: float = 0.995, limit: float = 1.0) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(
                f"dynamic threshold: found {quantile}, expected a share within (0, 1], such as 0.995"
            )
        if not limit > 0:
            raise ValueError(f"limit of x0: found {limit}, expected a positive number")
        self.denoiser = denoiser
        self.quantile = quantile
        self.limit = limit

    def __call__(self, x: Tensor, step: int) -> Prediction:
        return self.denoiser(x, step).map(self._threshold)

    def _threshold(self, x0: Tensor) -> Tensor:
        magnitude = x0.abs().flatten(1)  # [B, N]
        # Row by row: torch.quantile takes at most 2^24 values at once, five images of 1024 pixels.
        s = torch.stack([torch.quantile(row, self.quantile) for row in magnitude]).clamp(
            min=self.limit
        )  # [B]
        s = s.reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-s, s) * (self.limit / s)
