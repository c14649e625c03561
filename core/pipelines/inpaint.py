"""A part of a picture painted anew, the rest kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.inpainting import KnownDenoiser, passes_down, resampling_path, sample_repaint
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.parameterization import add_noise
from ..diffusion.samplers import StepCallback, sample_ddim
from ..embeddings.space import Embedding, TextFeatures
from ..stages import DecoderStage, require_stage
from .canvas import network_shape, picture_size, to_network, to_pictures, with_previews
from .composite import composite, require_mask, resize, shrink_mask
from .conditions import Conditions
from .decode import DecodeOptions, decoder_denoiser, limited, round_down
from .options import (
    check_options,
    guidance_option,
    guidance_scale_option,
    option,
    require_at_least,
    size_option,
    spaced_schedule,
    spacing_option,
    steps_option,
    strength_option,
)
from .rows import (
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
        1.5,
        "How strongly the new part follows the embedding. 1 is without guidance. Guidance cfg_pp takes 0 to "
        "1.",
    )
    resamples: int = option(
        3,
        1,
        30,
        help="How often each stretch of the way is walked, so that the new part fits the old. Takes up to "
        "as many times longer. Decoders made for inpainting go the way once.",
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
    width: int = size_option("wide")
    height: int = size_option("high")
    strength: float = strength_option(
        "How much of what is under the mask may change. 1 begins from noise alone, less from what is there."
    )
    spacing: str = spacing_option(optimal=True)
    guidance: str = guidance_option("cfg", "cfg_pp", "apg", "pag")

    def __post_init__(self) -> None:
        check_options(self)
        require_at_least(1, "which walks the way once", resamples=self.resamples)
        require_at_least(1, jump_length=self.jump_length)
        if self.feather < 0:
            raise ValueError(f"feather is {self.feather}; expected 0 pixels or more")

    @property
    def changes(self) -> bool:
        """Whether ``strength`` lets any step be gone; else pictures come back as they are."""
        return self.strength * self.steps >= 1

    def as_decode_options(self) -> DecodeOptions:
        return DecodeOptions(
            self.steps,
            self.guidance_scale,
            eta=self.eta,
            strength=self.strength,
            spacing=self.spacing,
            guidance=self.guidance,
        )


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
    hint: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Paint what a mask covers anew, at the decoder's size.

    Decoders that were trained to inpaint (with more input channels: GLIDE's, Kandinsky's) see picture and
    mask; others are steered by RePaint (2201.09865). Picture i is the one that seed + i gives alone.

    Of a decoder with an autoencoder the whole picture is encoded, and what is known is multiplied out of its
    latent. After each step the known part is put in, noised as x_T was (``KandinskyV22InpaintPipeline``).

    Args:
        image: [1 or B, 3, H, W] in 0..1. Squeezed to the size that is painted, so that nothing is cut off:
            the decoder's square, or with an autoencoder near the picture's own proportions. ``composite``
            carries the result back to the original.
        mask: [1 or B, 1, H, W] in 0..1, 1 = repaint. Every pixel of the decoder's size that it touches is
            repainted. A picture whose mask is empty comes back as it is.
        embedding: [1 or B, D], what the whole picture is to show; None for a decoder that takes none.
        text: captions, 1 or B; used only by decoders that read text.
        batch_size: number B of results where the inputs have one row.
        negative_embedding, negative_text, hint: see ``decode``. Of ``options.strength`` as well.

    Returns:
        [B, 3, H, W] float32 in 0..1; where the mask is 0 the (resized) picture, to the bit.

    Raises:
        ValueError: masks that are all empty or of another size, another CLIP space, batch sizes that do not
            match.
    """
    require_stage(DecoderStage, decoder=decoder)
    require_pictures(image)
    require_mask(mask, image)
    if not bool((mask > 0).any()):
        raise ValueError(
            "mask: is empty, so there is nothing to repaint; paint over what is to change (white, 1, is "
            "repainted)"
        )
    conditions = Conditions(embedding, text, negative_embedding, negative_text, hint)
    batch = common_batch(image=len(image), mask=len(mask), **conditions.sizes(), batch_size=batch_size)

    network = decoder.network
    device, _ = device_and_dtype(network)
    size = picture_size(decoder, options.width, options.height, image)
    shape = network_shape(decoder, size)
    image = resize(image.to(device, torch.float32).clamp(0, 1), size)
    if hint is not None:  # squeezed as the picture is, so that it stays over it
        require_pictures(hint, "hint")
        conditions = replace(conditions, hint=resize(hint.to(image).clamp(0, 1), size))
    mask = shrink_mask(mask.to(image).clamp(0, 1), size)
    if not options.changes:
        return to_batch(image, batch)
    known = to_batch(to_network(decoder, image), batch)  # [B, C, h, w]
    repaint = to_batch(shrink_mask(mask, shape[1:]) > 0, batch)

    schedule = spaced_schedule(decoder.diffusion, options.steps, options.spacing)
    schedule = schedule.start(round_down(options.strength * options.steps))
    sighted = sees_mask(decoder)
    concat = masked_picture(known, repaint) if sighted else None
    decode_options = options.as_decode_options()
    denoiser = decoder_denoiser(decoder, schedule, conditions, batch, decode_options, concat, size)
    denoiser = limited(denoiser, decoder, decode_options)

    generators = image_generators(seed, batch)
    noise = x = draw_noise(generators, shape, device)  # [B, C, h, w]
    if options.strength < 1:
        signal, sigma = schedule.sqrt_alphas_cumprod[-1].item(), schedule.sqrt_one_minus_alphas_cumprod[-1]
        x = add_noise(known, x, signal, sigma.item())
    callback = with_previews(decoder, callback)
    if sighted and decoder.autoencoder is None:
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
            resamples=1 if sighted else options.resamples,
            jump_length=options.jump_length,
            known_noise=noise if sighted else None,
            callback=callback,
        )
    return composite(image, to_pictures(decoder, x), mask, options.feather)


def inpaint_steps(decoder: DecoderStage, options: InpaintOptions) -> int:
    """How often :func:`inpaint` calls its callback: the way back and forth included, where there is one."""
    steps = max(1, round_down(options.strength * options.steps))
    if sees_mask(decoder):
        return steps
    return passes_down(resampling_path(steps, options.jump_length, options.resamples))


def sees_mask(decoder: DecoderStage) -> bool:
    """Whether picture and mask are concatenated to what it denoises."""
    config = decoder.network.config
    return config.concat_channels == config.in_channels + 1
