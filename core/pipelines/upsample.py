"""Small pictures → large pictures, by a diffusion upsampler."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..acceleration.kept_copies import with_packed_weights
from ..diffusion.denoiser import ClampedDenoiser, Denoiser, NetworkDenoiser
from ..diffusion.inpainting import KnownDenoiser
from ..diffusion.low_resolution import corrupt, corrupt_large, quantise, resize_condition
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.samplers import StepCallback
from ..diffusion.sampling import sample
from ..diffusion.schedule import Schedule, schedule_of
from ..embeddings.space import TextFeatures, require_plain_text, require_same_space
from ..networks.unet import UNetCondition
from ..networks.unet_pair import UNetPair
from ..networks.upsampled import UpsampledConv2d
from ..stages import UpsamplerStage, require_stage
from .composite import require_mask, resize, shrink_mask
from .conditioning import text_inputs
from .memory import sampling_memory
from .options import (
    check_options,
    eta_option,
    option,
    sampler_option,
    spaced_schedule,
    spacing_option,
    steps_option,
)
from .rows import (
    common_batch,
    count_on,
    device_and_dtype,
    masked_picture,
    require_pictures,
    to_batch,
)

logger = logging.getLogger(__name__)

# Output pixels that go through the network at once: sixteen pictures of 256 pixels, or one of 1024.
_PIXELS_AT_ONCE = 16 * 256 * 256
# Memory beside the weights: large networks (Karlo's) take fewer pictures, which leaves room in 8 GB.
_BYTES_AT_ONCE = 2 * 1024**3


_MASKED_PICTURE = 4  # channels of what inpainting networks see of a picture in colours and its mask


@dataclass(frozen=True)
class UpsampleOptions:
    """How an upsampler is sampled.

    Attributes:
        steps: of the sampler; an upsampler made for certain timesteps (Karlo's) runs those instead.
        noise_level: 0..1, strength of the noise put on the small picture, see ``low_resolution.corrupt``.
            Only for upsamplers trained for it. None takes what the upsampler was made for
            (``UpsamplerConditions``).
        pack_weights: on the CPU, keep second copies of the weights of large grids from the first call on,
            which on most processors is faster.
    """

    steps: int = steps_option(
        4,
        "Denoising steps. Few are enough: the small picture says most. Ignored by upsamplers that were made "
        "for certain steps.",
    )
    sampler: str = sampler_option("ddim")
    eta: float = eta_option()
    noise_level: float | None = option(
        None,
        -1.0,
        1.0,
        0.01,
        help="Noise added to the small picture, and told to the upsampler: more lets it repair flaws and "
        "invent more. Below 0 takes what the upsampler was made for; 0 adds none.",
        none=-1.0,
    )
    pack_weights: bool = True
    spacing: str = spacing_option()

    def __post_init__(self) -> None:
        check_options(self)
        if self.noise_level is not None and not 0 <= self.noise_level <= 1:
            raise ValueError(f"noise_level is {self.noise_level}; expected 0 (none) to 1 (only noise)")


@torch.no_grad()
def upsample(
    upsampler: UpsamplerStage,
    image: Tensor,
    text: TextFeatures | None = None,
    *,
    seed: int,
    options: UpsampleOptions = UpsampleOptions(),
    known_image: Tensor | None = None,
    mask: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample large pictures that look like the small ones.

    Picture i is the one that seed + i gives alone. Large batches run part by part; the callback then counts
    the steps of all parts, and its x0 is the whole batch: what is finished, the part at work, and the small
    pictures of those that wait.

    Args:
        image: [B, 3, h, w] in 0..1. Any height and width that the network's grid allows: an upsampler
            without attention looks at neighbourhoods only. Its scale is fixed.
        text: captions, 1 or B, encoded by the upsampler's own text encoder; used only by upsamplers that
            read text (GLIDE's).
        known_image, mask: for upsamplers that were trained to inpaint (GLIDE's): pictures [1 or B, 3, H, W]
            in 0..1 and [1 or B, 1, H, W], 1 = repaint. Both are brought to the size of the result, which is
            ``known_image`` where the mask is 0. None of them is a picture of which nothing is known.

    Returns:
        [B, 3, h·scale, w·scale] float32 in 0..1, scale = image size of the network / ``low_size``.

    Raises:
        ValueError: not pictures; a size that does not fit the network's grid or, with attention, is not the
            one it was trained for; a noise level for a network that was trained without; no captions, or
            those of another encoder, for a network that reads them; a known picture without a mask, of
            another batch size, or for an upsampler that was not trained to inpaint.
    """
    require_stage(UpsamplerStage, upsampler=upsampler)
    require_pictures(image)
    text = _captions(upsampler, text, len(image))
    size = _output_size(upsampler, image)
    known = _known(upsampler, known_image, mask, len(image), size)
    noise_level = upsampler.recipe.noise_level if options.noise_level is None else options.noise_level
    if noise_level > 0 and not upsampler.network.config.noise_level:
        raise ValueError(
            f"noise_level is {noise_level}, but this upsampler was trained without noise on the "
            f"small picture; set it to 0"
        )
    schedule = _schedule(upsampler, options)
    generators = image_generators(seed, len(image))
    at_once = _pictures_at_once(upsampler, size)
    starts = range(0, len(image), at_once)
    finished: list[Tensor] = []
    for index, start in enumerate(starts):
        stop = start + at_once

        def waiting(stop: int = stop) -> Tensor:  # as small pictures made large
            return F.interpolate(image[stop:].float().clamp(0, 1) * 2 - 1, size=size)

        finished.append(
            _upsample_part(
                upsampler,
                image[start:stop],
                None if text is None else text.rows(start, stop),
                None if known is None else _rows(known, start, stop),
                size,
                schedule,
                generators[start:stop],
                options,
                noise_level,
                count_on(callback, index, len(starts), finished, waiting if stop < len(image) else None),
            )
        )
    return torch.cat(finished)


def upsample_memory(upsampler: UpsamplerStage, batch: int, height: int, width: int) -> int:
    """Bytes that :func:`upsample` takes for ``batch`` pictures of this size; an estimate as in ``memory``."""
    scale = upsampler.network.config.image_size // upsampler.low_size
    size = (height * scale, width * scale)
    pictures = 2 * 3 * 4 * batch * size[0] * size[1]  # float32: the finished parts, and all of them joined
    at_once = min(batch, _pictures_at_once(upsampler, size))
    return pictures + at_once * sampling_memory(upsampler.network, *size, passes=1)


def _pictures_at_once(upsampler: UpsamplerStage, size: tuple[int, int]) -> int:
    by_bytes = _BYTES_AT_ONCE // sampling_memory(upsampler.network, *size, passes=1)
    return max(1, min(_PIXELS_AT_ONCE // (size[0] * size[1]), by_bytes))


def _rows(known: tuple[Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor]:
    return known[0][start:stop], known[1][start:stop]


def _upsample_part(
    upsampler: UpsamplerStage,
    image: Tensor,
    text: TextFeatures | None,
    known: tuple[Tensor, Tensor] | None,
    size: tuple[int, int],
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    options: UpsampleOptions,
    noise_level: float,
    callback: StepCallback | None,
) -> Tensor:
    network = upsampler.network
    recipe = upsampler.recipe
    device, _ = device_and_dtype(network)
    low = image.to(device, torch.float32).clamp(0, 1) * 2 - 1  # [b, 3, h, w]
    low = quantise(low) if recipe.quantise else low
    level = torch.full((len(low),), noise_level, device=device)
    noisy, on_large = noise_level > 0, recipe.noise_on == "large"
    if noisy and not on_large:
        low = corrupt(low, level, draw_noise(generators, low.shape[1:], device))
    concat = resize_condition(low, size, recipe.resize)
    if noisy and on_large:
        concat = corrupt_large(concat, noise_level, draw_noise(generators, concat.shape[1:], device))
    if inpaints(upsampler):
        masked = concat.new_zeros(len(low), _MASKED_PICTURE, *size)
        if known is not None:
            masked = masked_picture(*(rows.to(device) for rows in known))
        concat = torch.cat([masked, concat], dim=1)
    condition = None
    if text is not None and not isinstance(network, UNetPair):
        condition = network.condition(batch=len(low), **text_inputs(network, text, len(low)))
    denoiser = _denoiser(upsampler, schedule, concat, level, condition, options.pack_weights)
    if known is not None:
        denoiser = KnownDenoiser(denoiser, *(rows.to(device) for rows in known))
    x = draw_noise(generators, (network.config.in_channels, *size), device)  # [b, 3, H, W]
    x = x * recipe.noise_scale
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


def inpaints(upsampler: UpsamplerStage) -> bool:
    """Whether the network sees a masked picture and its mask (4 channels) besides the small one."""
    return upsampler.network.config.concat_channels == 3 + _MASKED_PICTURE


def _known(
    upsampler: UpsamplerStage,
    known: Tensor | None,
    mask: Tensor | None,
    batch: int,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor] | None:
    """The known pictures [B, 3, H, W] in −1..1 and where they are repainted [B, 1, H, W]."""
    if known is None and mask is None:
        return None
    if known is None or mask is None:
        raise ValueError(
            "known_image, mask: found only one; give the original picture and the mask, or neither"
        )
    if not inpaints(upsampler):
        raise ValueError(
            "known_image: this upsampler was not trained to inpaint; upsample without, and put the result "
            "into the original picture afterwards"
        )
    require_pictures(known, "known_image")
    require_mask(mask, known)
    if common_batch(image=batch, known_image=len(known), mask=len(mask)) != batch:
        raise ValueError(
            f"known_image, mask: found {len(known)} and {len(mask)} for {batch} small pictures; expected one "
            f"or {batch} of each"
        )
    known = resize(known.float().clamp(0, 1), size) * 2 - 1
    repaint = shrink_mask(mask.float().clamp(0, 1), size) > 0
    return to_batch(known, batch), to_batch(repaint, batch)


def _captions(upsampler: UpsamplerStage, text: TextFeatures | None, batch: int) -> TextFeatures | None:
    """The captions of all pictures, or None for an upsampler that reads none."""
    if upsampler.network.config.conditioning is None:
        return None
    if text is None:
        raise ValueError(
            "text: this upsampler reads captions; connect one that its own text encoder has encoded: load "
            "the file of the upsampler with the CLIP loader as well"
        )
    require_plain_text("text", text)
    if upsampler.space is not None:
        require_same_space("text", text.space, upsampler.space)
    common_batch(image=batch, text=len(text))
    return text.expand(batch)


def _denoiser(
    upsampler: UpsamplerStage,
    schedule: Schedule,
    concat: Tensor,
    level: Tensor,
    condition: UNetCondition | None,
    pack_weights: bool,
) -> Denoiser:
    network = upsampler.network
    device, dtype = device_and_dtype(network)
    concat = concat.to(dtype, memory_format=torch.channels_last)
    noise_level = level if network.config.noise_level else None
    # Other layers have more pixels than weights: packing them gains only where it saves products.
    running = with_packed_weights(network, (UpsampledConv2d,)) if pack_weights else network

    def call(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), int(schedule.timesteps[step]), device=device)
        x = x.to(dtype, memory_format=torch.channels_last)
        return running(x, t, condition, concat=concat, noise_level=noise_level)

    denoiser = NetworkDenoiser(call, schedule, upsampler.diffusion)
    limit = upsampler.diffusion.clip_x0
    return denoiser if limit is None else ClampedDenoiser(denoiser, limit)


def _schedule(upsampler: UpsamplerStage, options: UpsampleOptions) -> Schedule:
    if upsampler.timesteps is None:
        return spaced_schedule(upsampler.diffusion, options.steps, options.spacing)
    if options.steps != len(upsampler.timesteps):
        logger.info(
            "this upsampler is made for its own %d timesteps and runs those", len(upsampler.timesteps)
        )
    return schedule_of(upsampler.diffusion).respace(upsampler.timesteps)


def _output_size(upsampler: UpsamplerStage, image: Tensor) -> tuple[int, int]:
    config = upsampler.network.config
    low_size, (height, width) = upsampler.low_size, image.shape[-2:]
    if config.attention and (height, width) != (low_size, low_size):
        raise ValueError(
            f"image: found {width}×{height} pixels, but this upsampler has attention and works at "
            f"{low_size}×{low_size} only; resize the pictures to that"
        )
    scale = config.image_size // low_size
    size = (height * scale, width * scale)
    if any(side % config.multiple_of for side in size):
        multiple = config.multiple_of // math.gcd(config.multiple_of, scale)
        raise ValueError(
            f"image: found {width}×{height} pixels; width and height must be multiples of {multiple} for "
            f"this upsampler. Crop or resize the pictures"
        )
    return size
