"""Inpainting of pictures of any size in one node."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.inpaint_whole import InpaintWholeOptions, inpaint_whole
from ..core.pipelines.options import from_settings
from ..core.pipelines.repeats import repeat_conditions, repeat_each, results_to_make
from ..core.pipelines.transparency import with_opaque_edit
from ..core.stages import DecoderStage, UpsamplerStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/decode"


class UnCLIPInpaintWhole:
    """A masked part of a picture of any size painted anew, in its own size."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Paints the masked part of a picture of any size anew: cuts it out with what surrounds it, paints "
        "it, makes it larger, and puts it back. Everything outside of the mask stays exactly as it was."
    )
    SEARCH_ALIASES = [
        "inpaint crop and stitch",
        "inpaint",
        "crop and stitch",
        "repaint",
        "edit photo",
        "fill",
    ]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures in their own size, unchanged outside of the mask.",)
    FUNCTION = "execute"
    OPTIONS = InpaintWholeOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        upsampler = (
            "Makes the painted part larger before it is put back: connect one where the part has more pixels "
            "than the decoder paints."
        )
        return {
            "required": {
                "decoder": inputs.decoder(),
                "image": inputs.socket(sockets.IMAGE, "Pictures of any size and shape."),
                "mask": inputs.socket(
                    sockets.MASK,
                    "What to repaint: white (1) is painted anew. Paint one over a loaded picture: "
                    "right-click Load Image and open the mask editor.",
                ),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "guidance_scale", "margin", "feather", "resamples"),
                "batch_size": inputs.batch_size("Results to paint of one picture, each with its own seed."),
            },
            "optional": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "What the masked part and its surroundings are to show, for example from a prior. Only "
                    "decoders that paint captions alone (GLIDE) go without.",
                ),
                "text": inputs.decoded_text(),
                "upsampler": inputs.socket(sockets.UPSAMPLER, upsampler),
                "upsampler_2": inputs.socket(sockets.UPSAMPLER, "A second upsampler, behind the first."),
                "upsampler_text": inputs.socket(
                    sockets.TEXT,
                    "The caption for upsamplers that read captions (GLIDE's), encoded by the text encoder in "
                    "the upsampler's own file.",
                ),
                **inputs.negatives(cls.OPTIONS),
                **inputs.take(options, "jump_length", "eta"),
                "repeat": inputs.repeat("Pictures"),
                **options,
                "hint": inputs.hint(),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None,
        image: Tensor,
        mask: Tensor,
        seed: int,
        batch_size: int,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        upsampler: UpsamplerStage | None = None,
        upsampler_2: UpsamplerStage | None = None,
        upsampler_text: TextFeatures | None = None,
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        repeat: int = 1,
        hint: Tensor | None = None,
        **given: Any,
    ) -> tuple[Tensor]:
        decoder = sockets.require_stage(decoder, "decoder")
        hints = None if hint is None else sockets.image_to_core(hint, "hint")
        conditions = Conditions(embedding, text, negative_embedding, negative_text, hints)
        pixels = sockets.image_to_core(image)
        region = sockets.mask_to_core(mask, *pixels.shape[-2:])
        if not bool((region > 0).any()):
            raise ValueError(
                "mask: is empty, so there is nothing to repaint; paint over what is to change (right-click "
                "Load Image and open the mask editor), or connect another mask"
            )
        captions = {} if upsampler_text is None else {"upsampler_text": len(upsampler_text)}
        results = results_to_make(
            repeat, batch_size, image=len(pixels), mask=len(region), **conditions.sizes(), **captions
        )
        conditions = repeat_conditions(conditions, results)
        options = from_settings(self.OPTIONS, given)
        painted = inpaint_whole(
            decoder,
            repeat_each(pixels, results),
            repeat_each(region, results),
            **vars(conditions),
            seed=seed,
            batch_size=results,
            options=options,
            upsamplers=[each for each in (upsampler, upsampler_2) if each is not None],
            upsampler_text=repeat_each(upsampler_text, results),
            on_stage=placement.sampling,
        )
        if sockets.has_alpha(image):
            whole, edit = repeat_each(sockets.image_with_alpha(image), results), repeat_each(region, results)
            edit = edit if options.changes else edit * 0
            painted = with_opaque_edit(whole, painted, edit, options.feather)
        return (sockets.image_from_core(painted).to(host.result_device()),)
