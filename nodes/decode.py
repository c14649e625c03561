"""Decode nodes: from CLIP image embeddings to pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.canvas import picture_size
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.decode import DecodeOptions, decode
from ..core.pipelines.memory import decode_memory
from ..core.pipelines.noise import StartingNoise
from ..core.pipelines.options import from_settings, is_guided
from ..core.pipelines.regions import Regions, region_sizes
from ..core.pipelines.repeats import repeat_conditions, repeat_each, repeat_regions, results_to_make
from ..core.stages import DecoderStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/decode"


class UnCLIPDecode:
    """Image embeddings to pictures."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Paints pictures of what CLIP image embeddings show. Every seed paints another picture of the same "
        "content; upsamplers make them larger."
    )
    SEARCH_ALIASES = [
        "unclip decoder",
        "embedding to image",
        "image variation",
        "ksampler",
        "sampler",
        "dalle",
        "text2img",
        "img2img",
        "negative",
    ]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("Pictures in the decoder's size: usually 64 pixels, of Kandinsky 512.",)
    FUNCTION = "execute"
    OPTIONS = DecodeOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "decoder": inputs.decoder(),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "guidance_scale", "sampler"),
                "batch_size": inputs.batch_size(
                    "Pictures to paint of one embedding. Leave it at 1 for a batch of embeddings: each gives "
                    "one picture, or as many as repeat says."
                ),
            },
            "optional": {
                "embedding": inputs.decoded_embedding(),
                "text": inputs.decoded_text(),
                "noise": inputs.socket(
                    sockets.NOISE,
                    "The noise to start from, instead of the seed's: from unCLIP Invert it paints the "
                    "inverted picture, from unCLIP Noise one composition for different embeddings.",
                ),
                **inputs.negatives(cls.OPTIONS),
                **inputs.take(
                    options, "eta", "guidance_start", "guidance_end", "guidance_rescale", "dynamic_threshold"
                ),
                "repeat": inputs.repeat("Pictures"),
                **options,
                "image": inputs.opaque(
                    "A picture to begin from instead of noise alone; strength says how much of it changes."
                ),
                "hint": inputs.hint(),
                "regions": inputs.socket(
                    sockets.REGIONS,
                    "Parts of the picture that show something of their own, from unCLIP Region. Embedding "
                    "and text are for the rest. Each region takes as long as a picture.",
                ),
                "weak_decoder": inputs.weak_decoder(),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None,
        seed: int,
        batch_size: int,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        noise: StartingNoise | None = None,
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        repeat: int = 1,
        image: Tensor | None = None,
        hint: Tensor | None = None,
        regions: Regions | None = None,
        weak_decoder: DecoderStage | None = None,
        **given: Any,
    ) -> tuple[Tensor]:
        decoder = sockets.require_stage(decoder, "decoder")
        options = from_settings(self.OPTIONS, given)
        pixels = None if image is None else sockets.image_to_core(image)
        hints = None if hint is None else sockets.image_to_core(hint, "hint")
        conditions = Conditions(embedding, text, negative_embedding, negative_text, hints)
        parts = () if regions is None else regions.items
        rows = {**region_sizes(parts), **({} if pixels is None else {"image": len(pixels)})}
        pictures = results_to_make(repeat, batch_size, noise, **conditions.sizes(), **rows)
        conditions, noise = repeat_conditions(conditions, pictures), repeat_each(noise, pictures)
        pixels = repeat_each(pixels, pictures)
        size = picture_size(decoder, options.width, options.height, pixels, quiet=True)
        needed = decode_memory(decoder, 2.0 if is_guided(options) else 1.0, pictures, size=size)
        weaker = weak_decoder if options.guidance == "autoguidance" else None
        with placement.sampling(decoder, needed, "Decode", options.steps, beside=weaker) as on_step:
            pixels = decode(
                decoder,
                **vars(conditions),
                seed=seed,
                batch_size=pictures,
                options=options,
                noise=None if noise is None else noise.values,
                image=pixels,
                regions=repeat_regions(parts, pictures),
                weaker=weak_decoder,
                callback=on_step,
            )
            return (sockets.image_from_core(pixels).to(host.result_device()),)
