"""Small pictures → large pictures, by a diffusion upsampler."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.denoiser import ClampedDenoiser, Denoiser, NetworkDenoiser
from ..diffusion.low_resolution import corrupt, resize_condition
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.samplers import SAMPLERS, SamplerStep, StepCallback, sample
from ..diffusion.schedule import Schedule, make_schedule
from ..networks.unet import UNet
from ..stages import UpsamplerStage
from .running import device_and_dtype, require_pictures

logger = logging.getLogger(__name__)

# Output pixels that go through the network at once: sixteen pictures of 256 pixels, or one of 1024.
_PIXELS_AT_ONCE = 16 * 256 * 256


@dataclass(frozen=True)
class UpsampleOptions:
    """How an upsampler is sampled.

    Attributes:
        steps: of the sampler; an upsampler made for certain timesteps (Karlo's) runs those instead.
        sampler: one of ``core.diffusion.samplers.SAMPLERS``.
        eta: 0..1, noise that ddim adds in each step.
        noise_level: 0..1, strength of the noise put on the small picture, see ``low_resolution.corrupt``.
            More lets the upsampler invent more, and hides artefacts. Only for upsamplers trained for it.
    """

    steps: int = 4
    sampler: str = "ddim"
    eta: float = 0.0
    noise_level: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r} is not known; choose one of {', '.join(SAMPLERS)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; expected 0 to 1")
        if not 0 <= self.noise_level <= 1:
            raise ValueError(f"noise_level is {self.noise_level}; expected 0 (none) to 1 (only noise)")


@torch.no_grad()
def upsample(
    upsampler: UpsamplerStage,
    images: Tensor,
    *,
    seed: int,
    options: UpsampleOptions = UpsampleOptions(),
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample large pictures that look like the small ones.

    Picture i is the one that seed + i gives alone. Large batches run part by part; the callback then counts
    the steps of all parts, and sees the pictures of the part at work.

    Args:
        images: [B, 3, h, w] in 0..1. Any height and width that the network's grid allows: an upsampler
            without attention looks at neighbourhoods only. Its scale is fixed.

    Returns:
        [B, 3, h·scale, w·scale] float32 in 0..1, scale = image size of the network / ``low_size``.

    Raises:
        ValueError: not pictures; a size that does not fit the network's grid or, with attention, is not the
            one it was trained for; a noise level for a network that was trained without.
    """
    require_pictures(images)
    size = _output_size(upsampler, images)
    if options.noise_level > 0 and not upsampler.network.config.noise_level:
        raise ValueError(
            f"noise_level is {options.noise_level}, but this upsampler was trained without noise on the "
            f"small picture; set it to 0"
        )
    schedule = _schedule(upsampler, options)
    generators = image_generators(seed, len(images))
    at_once = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    starts = range(0, len(images), at_once)
    parts = [
        _upsample_part(
            upsampler,
            images[start : start + at_once],
            size,
            schedule,
            generators[start : start + at_once],
            options,
            _counted(callback, index, len(starts)),
        )
        for index, start in enumerate(starts)
    ]
    return torch.cat(parts)


def _upsample_part(
    upsampler: UpsamplerStage,
    images: Tensor,
    size: tuple[int, int],
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    options: UpsampleOptions,
    callback: StepCallback | None,
) -> Tensor:
    network: UNet = upsampler.network
    device, _ = device_and_dtype(network)
    low = images.to(device, torch.float32).clamp(0, 1) * 2 - 1  # [b, 3, h, w]
    level = torch.full((len(low),), options.noise_level, device=device)
    if options.noise_level > 0:
        low = corrupt(low, level, draw_noise(generators, low.shape[1:], device))
    denoiser = _denoiser(upsampler, schedule, resize_condition(low, size), level)
    x = draw_noise(generators, (network.config.in_channels, *size), device)  # [b, 3, H, W]
    x = sample(
        options.sampler,
        denoiser,
        x,
        schedule,
        spec=upsampler.diffusion,
        generators=generators,
        eta=options.eta,
        callback=callback,
    )
    return ((x + 1) / 2).clamp(0, 1).contiguous()


def _denoiser(upsampler: UpsamplerStage, schedule: Schedule, condition: Tensor, level: Tensor) -> Denoiser:
    network: UNet = upsampler.network
    device, dtype = device_and_dtype(network)
    condition = condition.to(dtype, memory_format=torch.channels_last)
    noise_level = level if network.config.noise_level else None

    def call(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), int(schedule.timesteps[step]), device=device)
        x = x.to(dtype, memory_format=torch.channels_last)
        return network(x, t, concat=condition, noise_level=noise_level)

    denoiser = NetworkDenoiser(call, schedule, upsampler.diffusion)
    limit = upsampler.diffusion.clip_x0
    return denoiser if limit is None else ClampedDenoiser(denoiser, limit)


def _schedule(upsampler: UpsamplerStage, options: UpsampleOptions) -> Schedule:
    schedule = make_schedule(upsampler.diffusion.schedule, upsampler.diffusion.num_timesteps)
    if upsampler.timesteps is None:
        return schedule.respace(options.steps)
    if options.steps != len(upsampler.timesteps):
        logger.info(
            "this upsampler is made for its own %d timesteps and runs those", len(upsampler.timesteps)
        )
    return schedule.respace(upsampler.timesteps)


def _output_size(upsampler: UpsamplerStage, images: Tensor) -> tuple[int, int]:
    config = upsampler.network.config
    low_size, (height, width) = upsampler.low_size, images.shape[-2:]
    if config.attention and (height, width) != (low_size, low_size):
        raise ValueError(
            f"images: found {width}×{height} pixels, but this upsampler has attention and works at "
            f"{low_size}×{low_size} only; resize the pictures to that"
        )
    scale = config.image_size // low_size
    size = (height * scale, width * scale)
    if any(side % config.multiple_of for side in size):
        multiple = config.multiple_of // math.gcd(config.multiple_of, scale)
        raise ValueError(
            f"images: found {width}×{height} pixels; width and height must be multiples of {multiple} for "
            f"this upsampler. Crop or resize the pictures"
        )
    return size


def _counted(callback: StepCallback | None, index: int, parts: int) -> StepCallback | None:
    """The callback for one part of a batch, in which steps count on through all parts."""
    if callback is None or parts == 1:
        return callback

    def counted(step: SamplerStep) -> None:
        callback(replace(step, index=step.index + index * step.total, total=step.total * parts))

    return counted
