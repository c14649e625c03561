"""Upsample nodes: pictures made larger by diffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import TextFeatures
from ..core.pipelines.options import from_settings
from ..core.pipelines.upsample import UpsampleOptions, upsample, upsample_memory
from ..core.stages import UpsamplerStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/upsample"


class UnCLIPUpsample:
    """Pictures to larger pictures."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Makes pictures larger with a diffusion upsampler, which invents the fine detail."
    SEARCH_ALIASES = ["upscale", "super resolution", "enlarge", "unclip upscaler"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The larger pictures.",)
    FUNCTION = "execute"
    OPTIONS = UpsampleOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "upsampler": inputs.socket(
                    sockets.UPSAMPLER, "The upsampler; chain two of them for 64 to 256 to 1024 pixels."
                ),
                "image": inputs.opaque("Pictures in the size that the upsampler starts from."),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "sampler"),
            },
            "optional": {
                "text": inputs.socket(
                    sockets.TEXT,
                    "The encoded caption, for upsamplers that read captions (GLIDE's). Encode it with the "
                    "text encoder in the upsampler's own file: load that with the CLIP loader too.",
                ),
                "known_image": inputs.opaque(
                    "For upsamplers made for inpainting (GLIDE's): the original picture in any size. What "
                    "the mask leaves out of it is kept."
                ),
                "mask": inputs.socket(
                    sockets.MASK, "With known_image: white (1) is painted anew, the rest is kept."
                ),
                **options,
            },
        }

    def execute(
        self,
        upsampler: UpsamplerStage | None,
        image: Tensor,
        seed: int,
        text: TextFeatures | None = None,
        known_image: Tensor | None = None,
        mask: Tensor | None = None,
        **given: Any,
    ) -> tuple[Tensor]:
        upsampler = sockets.require_stage(upsampler, "upsampler")
        options = from_settings(self.OPTIONS, given)
        pixels = sockets.image_to_core(image)
        known = None if known_image is None else sockets.image_to_core(known_image, "known_image")
        region = mask
        if known is not None and mask is not None:
            region = sockets.mask_to_core(mask, *known.shape[-2:])
        needed = upsample_memory(upsampler, len(pixels), *pixels.shape[-2:])
        with placement.sampling(upsampler, needed, "Upsample", options.steps) as on_step:
            pixels = upsample(
                upsampler,
                pixels,
                text,
                seed=seed,
                options=options,
                known_image=known,
                mask=region,
                callback=on_step,
            )
            return (sockets.image_from_core(pixels).to(host.result_device()),)
