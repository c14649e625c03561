"""Pictures → the noise x_T from which a decoder would paint them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..diffusion.inversion import invert_ddim
from ..diffusion.samplers import StepCallback
from ..embeddings.space import Embedding, TextFeatures
from ..networks.clip import ImageFit
from ..stages import DecoderStage, require_stage
from .canvas import fit_to, picture_size, to_network, with_previews
from .conditions import Conditions
from .decode import DecodeOptions, decoder_denoiser, limited
from .options import (
    check_options,
    guidance_option,
    guidance_scale_option,
    option,
    settings_of,
    size_option,
    spaced_schedule,
    spacing_option,
    steps_option,
)
from .rows import common_batch, device_and_dtype, require_pictures, to_batch


@dataclass(frozen=True)
class InvertOptions:
    """How a person inverts pictures: keyword arguments of :func:`invert`, for pictures that are decoded with
    ``DecodeOptions`` as they are."""

    steps: int = steps_option(
        DecodeOptions.steps, "Steps; decode with as many. More give a closer reconstruction."
    )
    refinements: int = option(
        4,
        0,
        50,
        help="Corrections of each step. Each costs as much as the step. Does the picture not come back, give "
        "it 6 to 10: guidance, and pictures that the decoder would not paint, need more.",
    )
    guidance_scale: float = guidance_scale_option(
        DecodeOptions.guidance_scale,
        "Decode with the same. 1 comes back most closely; the higher it is, the more refinements it needs.",
    )
    fit: str = option(
        "crop",
        help="The decoder paints squares: crop takes the middle of the picture, as unCLIP Image Encode does; "
        "squash distorts all of it.",
        choices=get_args(ImageFit),
        advanced=True,
    )
    width: int = size_option("wide")
    height: int = size_option("high")
    spacing: str = spacing_option(optimal=True)
    guidance: str = guidance_option("cfg", "cfg_pp", help=" Decode with the same.")

    def __post_init__(self) -> None:
        check_options(self)


@torch.no_grad()
def invert(
    decoder: DecoderStage,
    image: Tensor,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    steps: int,
    guidance_scale: float = InvertOptions.guidance_scale,
    refinements: int = InvertOptions.refinements,
    fit: ImageFit = "crop",
    width: int = 0,
    height: int = 0,
    spacing: str = "default",
    guidance: str = "cfg",
    hint: Tensor | None = None,
    negative_embedding: Embedding | None = None,
    negative_text: TextFeatures | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """DDIM inversion (unCLIP, section 3): together with the embedding, x_T holds all of a picture.

    Decoding x_T with the same conditions, number of steps, spacing and guidance by ``ddim`` with eta 0 gives
    the pictures again: the more steps and refinements, the closer. What is inverted is the sampler as
    it is, with x̂_0 clamped: an unclamped inversion fits only an unclamped sampler.

    Args:
        image: [1 or B, 3, H, W] in 0..1, of any size; brought to the decoder's.
        embedding: [1 or B, D], usually that of the pictures; None for a decoder that takes none.
        text: captions, 1 or B; used only by decoders that read text.
        guidance_scale: that of decoding.
        refinements: network calls for each step besides the first, see ``invert_ddim``.
        fit: what becomes of pictures of other proportions, see ``fit_images``.
        width, height: of the pictures to decode, see ``canvas.picture_size``; the noise has their size.
        spacing, guidance: those of decoding: ``cfg`` or ``cfg_pp``, which keep to one path.
        hint: see ``decode``.
        negative_embedding, negative_text: those of decoding.

    Returns:
        [B, C, h, w] float32, the size of x_T.

    Raises:
        ValueError: not pictures, another CLIP space, or batch sizes that do not match.
    """
    require_stage(DecoderStage, decoder=decoder)
    require_pictures(image)
    if guidance not in settings_of(InvertOptions)["guidance"].choices:
        raise ValueError(f"guidance {guidance!r} cannot be inverted; choose cfg or cfg_pp")
    options = DecodeOptions(steps=steps, guidance_scale=guidance_scale, spacing=spacing, guidance=guidance)
    conditions = Conditions(embedding, text, negative_embedding, negative_text, hint)
    batch = common_batch(image=len(image), **conditions.sizes())
    device, _ = device_and_dtype(decoder.network)
    size = picture_size(decoder, width, height, image)
    schedule = spaced_schedule(decoder.diffusion, steps, spacing)
    denoiser = decoder_denoiser(decoder, schedule, conditions, batch, options, size=size)
    denoiser = limited(denoiser, decoder, options)
    x = to_network(decoder, fit_to(image.to(device, torch.float32).clamp(0, 1), size, fit))
    shown = with_previews(decoder, callback)
    return invert_ddim(denoiser, to_batch(x, batch), schedule, refinements=refinements, callback=shown)
