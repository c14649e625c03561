"""Inpaint nodes: a part of a picture painted anew, and put back into the original."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.canvas import picture_size
from ..core.pipelines.composite import SHAPES, composite, region_mask
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.inpaint import InpaintOptions, inpaint, inpaint_steps
from ..core.pipelines.memory import decode_memory
from ..core.pipelines.options import from_settings, is_guided
from ..core.pipelines.repeats import repeat_conditions, repeat_each, results_to_make
from ..core.pipelines.transparency import composite_seen, over, with_opaque_edit
from ..core.stages import DecoderStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/decode"


class UnCLIPInpaint:
    """A masked part of a picture painted anew."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Paints the masked part of a picture anew, to fit the rest and to show what the embedding says. The "
        "result has the decoder's size; after upsampling, unCLIP Composite puts it into the original."
    )
    SEARCH_ALIASES = ["repaint", "fill", "edit picture", "remove object", "mask", "outpaint"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures in the decoder's size, unchanged outside of the mask.",)
    FUNCTION = "execute"
    OPTIONS = InpaintOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "decoder": inputs.decoder(),
                "image": inputs.opaque(
                    "Pictures of any size. Those that are not square are squeezed meanwhile."
                ),
                "mask": inputs.socket(sockets.MASK, "What to repaint: white (1) is painted anew."),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "guidance_scale", "resamples", "feather"),
                "batch_size": inputs.batch_size("Results to paint of one picture, each with its own seed."),
            },
            "optional": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "What the whole picture is to show, for example from a prior. Only decoders that paint "
                    "captions alone (GLIDE) go without.",
                ),
                "text": inputs.decoded_text(),
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
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        repeat: int = 1,
        hint: Tensor | None = None,
        **given: Any,
    ) -> tuple[Tensor]:
        decoder = sockets.require_stage(decoder, "decoder")
        options = from_settings(self.OPTIONS, given)
        hints = None if hint is None else sockets.image_to_core(hint, "hint")
        conditions = Conditions(embedding, text, negative_embedding, negative_text, hints)
        pixels = sockets.image_to_core(image)
        region = sockets.mask_to_core(mask, *pixels.shape[-2:])
        results = results_to_make(
            repeat, batch_size, image=len(pixels), mask=len(region), **conditions.sizes()
        )
        conditions = repeat_conditions(conditions, results)
        size = picture_size(decoder, options.width, options.height, pixels, quiet=True)
        needed = decode_memory(decoder, 2.0 if is_guided(options) else 1.0, results, size=size)
        with placement.sampling(decoder, needed, "Inpaint", inpaint_steps(decoder, options)) as on_step:
            pixels = inpaint(
                decoder,
                repeat_each(pixels, results),
                repeat_each(region, results),
                **vars(conditions),
                seed=seed,
                batch_size=results,
                options=options,
                callback=on_step,
            )
            return (sockets.image_from_core(pixels).to(host.result_device()),)


class UnCLIPComposite:
    """An edited picture put into its original under a mask."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Puts the masked part of an edited picture into the original, at the original's size. Everything "
        "outside of the mask stays exactly as it was, transparency too."
    )
    SEARCH_ALIASES = ["paste", "merge", "inpaint", "image composite masked", "blend pictures"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The original with the edited part.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "original": inputs.socket(sockets.IMAGE, "The picture before the edit."),
                "edited": inputs.socket(
                    sockets.IMAGE, "The picture after it, in any size; it is brought to the original's."
                ),
                "mask": inputs.socket(sockets.MASK, "Where the edited picture shows: white (1)."),
                "feather": inputs.integer(
                    4, 0, 256, "Soft edge inside the mask, in pixels of the original picture."
                ),
            }
        }

    def execute(self, original: Tensor, edited: Tensor, mask: Tensor, feather: int) -> tuple[Tensor]:
        pixels = sockets.image_to_core(original, "original")
        region = sockets.mask_to_core(mask, *pixels.shape[-2:])
        made = composite(pixels, sockets.image_to_core(edited, "edited"), region, feather)
        transparent = sockets.has_alpha(original)
        if transparent or sockets.has_alpha(edited):
            whole = sockets.image_with_alpha(original, "original")
            if sockets.has_alpha(edited):
                made = composite_seen(whole, sockets.image_with_alpha(edited, "edited"), region, feather)
                made = made if transparent else over(made, pixels)
            else:
                made = with_opaque_edit(whole, made, region, feather)
        return (sockets.image_from_core(made),)


class UnCLIPRegionMask:
    """A simple mask for a picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes a mask in the size of a picture: a rectangle or an ellipse. For free forms, paint the mask in "
        "ComfyUI's mask editor instead."
    )
    SEARCH_ALIASES = ["mask", "rectangle", "ellipse", "circle", "box", "solid mask"]
    RETURN_TYPES = (sockets.MASK,)
    RETURN_NAMES = ("mask",)
    OUTPUT_TOOLTIPS = ("White (1) inside of the region.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        def share(default: float, low: float, tooltip: str) -> inputs.Input:
            return inputs.number(default, low, 1.0, 0.01, tooltip)

        return {
            "required": {
                "image": inputs.socket(sockets.IMAGE, "The picture whose size the mask gets."),
                "shape": inputs.choice(list(SHAPES), "Form of the region."),
                "x": share(0.5, 0.0, "Middle of the region: 0 is the left edge of the picture, 1 the right."),
                "y": share(0.5, 0.0, "Middle of the region: 0 is the top of the picture, 1 the bottom."),
                "width": share(0.5, 0.01, "Width of the region as a share of the picture's."),
                "height": share(0.5, 0.01, "Height of the region as a share of the picture's."),
            }
        }

    def execute(
        self, image: Tensor, shape: str, x: float, y: float, width: float, height: float
    ) -> tuple[Tensor]:
        pixels = sockets.image_to_core(image)
        mask = region_mask(tuple(pixels.shape[-2:]), shape, (x, y), (width, height))
        return (mask[:, 0].expand(len(pixels), -1, -1).contiguous(),)
