"""A part of a picture painted anew, the rest kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.inpainting import KnownDenoiser, passes_down, resampling_path, sample_repaint
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.samplers import StepCallback, sample_ddim
from ..diffusion.schedule import make_schedule
from ..embeddings.space import Embedding, TextFeatures
from ..networks.unet import UNet
from ..stages import DecoderStage
from .composite import composite, require_mask, resize, shrink_mask
from .conditions import Conditions
from .decode import DecodeOptions, decoder_denoiser, limited
from .options import guidance_scale_option, option, require_at_least, steps_option
from .rows import (
    MASKED_PICTURE_CHANNELS,
    common_batch,
    device_and_dtype,
    masked_picture,
    require_pictures,
    to_batch,
)


@dataclass(frozen=True)
class InpaintOptions:
    """How the new part is sampled.

    Attributes:
        guidance_scale: as in ``DecodeOptions``.
        resamples, jump_length: of ``resampling_path``. Not used by networks that were trained to inpaint.
        eta: noise of each ddim step; 1 is what RePaint does.
    """

    steps: int = steps_option(25, "Denoising steps, before resampling.")
    guidance_scale: float = guidance_scale_option(
        1.5, "How strongly the new part follows the embedding. 1 is without guidance."
    )
    resamples: int = option(
        3,
        1,
        30,
        help="How often each stretch of the way is walked, so that the new part fits the old. Takes as many "
        "times longer. Decoders made for inpainting go the way once.",
    )
    feather: int = option(0, 0, 64, help="Soft edge inside the masked part, in pixels of the decoder's size.")
    jump_length: int = option(5, 1, 100, help="Steps of a stretch that is walked again.", advanced=True)
    eta: float = option(
        1.0,
        0.0,
        1.0,
        0.05,
        help="Fresh noise per step. 1 fits the new part to the old best.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        self.as_decode_options()  # checks what both have
        require_at_least(1, "which walks the way once", resamples=self.resamples)
        require_at_least(1, jump_length=self.jump_length)
        if self.feather < 0:
            raise ValueError(f"feather is {self.feather}; expected 0 pixels or more")

    def as_decode_options(self) -> DecodeOptions:
        return DecodeOptions(self.steps, self.guidance_scale, eta=self.eta)


@torch.no_grad()
def inpaint(
    decoder: DecoderStage,
    image: Tensor,
    mask: Tensor,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    seed: int,
    batch_size: int = 1,
    options: InpaintOptions = InpaintOptions(),
    negative_embedding: Embedding | None = None,
    negative_text: TextFeatures | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Paint what a mask covers anew, at the decoder's size.

    Decoders that were trained to inpaint (GLIDE's, with 4 more input channels) see picture and mask; others
    are steered by RePaint (2201.09865). Picture i is the one that seed + i gives alone.

    Args:
        image: [1 or B, 3, H, W] in 0..1. Squeezed to the decoder's square, so that nothing is cut off;
            ``composite`` carries the result back to the original.
        mask: [1 or B, 1, H, W] in 0..1, 1 = repaint. Every pixel of the decoder's size that it touches is
            repainted. A picture whose mask is empty comes back as it is.
        embedding: [1 or B, D], what the whole picture is to show; None for a decoder that takes none.
        text: captions, 1 or B; used only by decoders that read text.
        batch_size: number B of results where the inputs have one row.
        negative_embedding, negative_text: see ``decode``.

    Returns:
        [B, 3, S, S] float32 in 0..1; where the mask is 0 the (resized) picture, to the bit.

    Raises:
        ValueError: masks that are all empty or of another size, another CLIP space, batch sizes that do not
            match.
    """
    require_pictures(image)
    require_mask(mask, image)
    if not bool((mask > 0).any()):
        raise ValueError(
            "mask: is empty, so there is nothing to repaint; paint over what is to change (white, 1, is "
            "repainted)"
        )
    conditions = Conditions(embedding, text, negative_embedding, negative_text)
    batch = common_batch(image=len(image), mask=len(mask), **conditions.sizes(), batch_size=batch_size)

    network: UNet = decoder.network
    device, _ = device_and_dtype(network)
    size = (network.config.image_size, network.config.image_size)
    image = resize(image.to(device, torch.float32).clamp(0, 1), size)
    mask = shrink_mask(mask.to(image).clamp(0, 1), size)
    known, repaint = to_batch(image * 2 - 1, batch), to_batch(mask > 0, batch)

    schedule = make_schedule(decoder.diffusion.schedule, decoder.diffusion.num_timesteps)
    schedule = schedule.respace(options.steps)
    sees_mask = _sees_mask(decoder)
    denoiser = decoder_denoiser(
        decoder,
        schedule,
        conditions,
        batch,
        options.as_decode_options(),
        masked_picture(known, repaint) if sees_mask else None,
    )
    denoiser = limited(denoiser, decoder, options.as_decode_options())

    generators = image_generators(seed, batch)
    x = draw_noise(generators, (network.config.in_channels, *size), device)  # [B, 3, S, S]
    if sees_mask:
        denoiser = KnownDenoiser(denoiser, known, repaint)
        x = sample_ddim(denoiser, x, schedule, eta=options.eta, generators=generators, callback=callback)
    else:
        x = sample_repaint(
            denoiser,
            x,
            known,
            repaint,
            schedule,
            generators=generators,
            eta=options.eta,
            resamples=options.resamples,
            jump_length=options.jump_length,
            callback=callback,
        )
    return composite(image, ((x + 1) / 2).clamp(0, 1), mask, options.feather)


def inpaint_steps(decoder: DecoderStage, options: InpaintOptions) -> int:
    """How often :func:`inpaint` calls its callback: the way back and forth included, where there is one."""
    if _sees_mask(decoder):
        return options.steps
    return passes_down(resampling_path(options.steps, options.jump_length, options.resamples))


def _sees_mask(decoder: DecoderStage) -> bool:
    return decoder.network.config.concat_channels == MASKED_PICTURE_CHANNELS
