"""Latent nodes: the noise that a decoder starts from, drawn, inverted from pictures, interpolated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.canvas import picture_size
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.decode import DecodeOptions
from ..core.pipelines.invert import InvertOptions, invert
from ..core.pipelines.memory import decode_memory
from ..core.pipelines.noise import StartingNoise, draw_starting_noise, interpolate_noise
from ..core.pipelines.options import from_settings, is_guided
from ..core.stages import DecoderStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/decode"


class UnCLIPNoise:
    """Starting noise of a seed."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draws the noise that a decoder starts from. One noise for many embeddings keeps the composition and "
        "changes the content."
    )
    SEARCH_ALIASES = ["random noise", "starting noise", "latent noise", "empty latent", "x_t"]
    RETURN_TYPES = (sockets.NOISE,)
    RETURN_NAMES = ("noise",)
    OUTPUT_TOOLTIPS = ("Noise for unCLIP Decode, batch_size of them.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "decoder": inputs.socket(sockets.DECODER, "The decoder that will start from it."),
                "seed": inputs.seed(),
                "batch_size": inputs.batch_size("Noises to draw, each with its own seed."),
            },
            "optional": {name: inputs.of(DecodeOptions)[name] for name in ("width", "height")},
        }

    def execute(
        self, decoder: DecoderStage | None, seed: int, batch_size: int, width: int = 0, height: int = 0
    ) -> tuple[StartingNoise]:
        decoder = sockets.require_stage(decoder, "decoder")
        noise = draw_starting_noise(decoder, seed=seed, batch_size=batch_size, width=width, height=height)
        return (noise,)


class UnCLIPNoiseInterpolate:
    """From one starting noise to another."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Goes from one starting noise to another in steps, beside unCLIP Interpolate: with the noises that "
        "unCLIP Invert finds for two pictures, the first and the last frame are those pictures."
    )
    SEARCH_ALIASES = ["noise slerp", "morph", "latent interpolation", "transition"]
    RETURN_TYPES = (sockets.NOISE,)
    RETURN_NAMES = ("noise",)
    OUTPUT_TOOLTIPS = ("One noise for each frame, the first and the last being those given.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "first": inputs.socket(sockets.NOISE, "Where it starts."),
                "second": inputs.socket(
                    sockets.NOISE, "Where it ends. Batches are taken pair by pair, as embeddings are."
                ),
                "frames": inputs.integer(9, 2, 256, "Noises to make, both ends among them."),
                "ease": inputs.ease(),
            }
        }

    def execute(
        self, first: StartingNoise, second: StartingNoise, frames: int, ease: str
    ) -> tuple[StartingNoise]:
        return (interpolate_noise(first, second, frames, ease),)


class UnCLIPInvert:
    """The starting noise of a picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Finds the noise from which the decoder paints a given picture. Noise and embedding together hold "
        "the picture: decode them with the same steps and eta 0 to get it back, with another embedding to "
        "edit it, with more eta to vary it."
    )
    SEARCH_ALIASES = [
        "ddim inversion",
        "invert image",
        "unsampler",
        "image to noise",
        "reconstruct",
        "img2img",
    ]
    RETURN_TYPES = (sockets.NOISE,)
    RETURN_NAMES = ("noise",)
    OUTPUT_TOOLTIPS = ("The noise of each picture, for unCLIP Decode with the ddim sampler.",)
    FUNCTION = "execute"
    OPTIONS = InvertOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "decoder": inputs.socket(sockets.DECODER, "The decoder that will paint from the noise."),
                "image": inputs.opaque("Pictures of any size; they are brought to the size of the decoder."),
                **inputs.take(options, "steps", "refinements", "guidance_scale"),
            },
            "optional": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "The encoded pictures. Only decoders that paint captions alone (GLIDE) go without.",
                ),
                "text": inputs.socket(
                    sockets.TEXT, "The encoded caption, if the decoder will be given it as well."
                ),
                **options,
                "hint": inputs.hint(),
                **inputs.negatives(cls.OPTIONS, more=" Decode with the same."),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None,
        image: Tensor,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        hint: Tensor | None = None,
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        **given: Any,
    ) -> tuple[StartingNoise]:
        decoder = sockets.require_stage(decoder, "decoder")
        options = from_settings(self.OPTIONS, given)
        pixels = sockets.image_to_core(image)
        hints = None if hint is None else sockets.image_to_core(hint, "hint")
        size = picture_size(decoder, options.width, options.height, pixels, quiet=True)
        conditions = Conditions(embedding, text, negative_embedding, negative_text, hints)
        needed = decode_memory(decoder, 2.0 if is_guided(options) else 1.0, pixels, conditions, size=size)
        with placement.sampling(decoder, needed, "Invert", options.steps) as on_step:
            noise = invert(decoder, pixels, **vars(conditions), **vars(options), callback=on_step)
            return (StartingNoise(noise.to(host.result_device()), decoder.source, decoder.scale),)
