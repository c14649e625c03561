"""Pictures → the noise x_T from which a decoder would paint them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..diffusion.inversion import invert_ddim
from ..diffusion.samplers import StepCallback
from ..diffusion.schedule import make_schedule
from ..embeddings.space import Embedding, TextFeatures
from ..networks.clip import ImageFit, fit_images
from ..stages import DecoderStage
from .conditions import Conditions
from .decode import DecodeOptions, decoder_denoiser, limited
from .options import guidance_scale_option, option, steps_option
from .rows import common_batch, device_and_dtype, require_pictures, to_batch


@dataclass(frozen=True)
class InvertOptions:
    """How a person inverts pictures: keyword arguments of :func:`invert`, for pictures that are decoded with
    ``DecodeOptions`` as they are."""

    steps: int = steps_option(
        DecodeOptions.steps, "Steps; decode with as many. More give a closer reconstruction."
    )
    refinements: int = option(
        3,
        0,
        50,
        help="Corrections of each step. Each costs as much as the step; 2 to 6 make the reconstruction many "
        "times closer.",
    )
    guidance_scale: float = guidance_scale_option(
        DecodeOptions.guidance_scale, "Decode with the same. Where it is high, use more refinements."
    )
    fit: str = option(
        "crop",
        help="The decoder paints squares: crop takes the middle of the picture, as unCLIP Image Encode does; "
        "squash distorts all of it.",
        choices=get_args(ImageFit),
        advanced=True,
    )


@torch.no_grad()
def invert(
    decoder: DecoderStage,
    image: Tensor,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    steps: int,
    guidance_scale: float = 1.0,
    refinements: int = 0,
    fit: ImageFit = "crop",
    callback: StepCallback | None = None,
) -> Tensor:
    """DDIM inversion (unCLIP, section 3): together with the embedding, x_T holds all of a picture.

    Decoding x_T with the same embedding, text, number of steps and guidance by ``ddim`` with eta 0 gives the
    pictures again: the more steps and refinements, the closer. What is inverted is the sampler as it is, with
    x̂_0 clamped: an unclamped inversion fits only an unclamped sampler.

    Args:
        image: [1 or B, 3, H, W] in 0..1, of any size; brought to the decoder's.
        embedding: [1 or B, D], usually that of the pictures; None for a decoder that takes none.
        text: captions, 1 or B; used only by decoders that read text.
        guidance_scale: that of decoding.
        refinements: network calls for each step besides the first, see ``invert_ddim``.
        fit: what becomes of pictures that are not square, see ``fit_images``.

    Returns:
        [B, 3, S, S] float32.

    Raises:
        ValueError: not pictures, another CLIP space, or batch sizes that do not match.
    """
    require_pictures(image)
    options = DecodeOptions(steps=steps, guidance_scale=guidance_scale)
    conditions = Conditions(embedding, text)
    batch = common_batch(image=len(image), **conditions.sizes())
    device, _ = device_and_dtype(decoder.network)
    schedule = make_schedule(decoder.diffusion.schedule, decoder.diffusion.num_timesteps).respace(steps)
    denoiser = decoder_denoiser(decoder, schedule, conditions, batch, options)
    denoiser = limited(denoiser, decoder, options)
    image = fit_images(image.to(device, torch.float32).clamp(0, 1), decoder.network.config.image_size, fit)
    return invert_ddim(
        denoiser, to_batch(image * 2 - 1, batch), schedule, refinements=refinements, callback=callback
    )
