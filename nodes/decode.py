"""Decode nodes: from CLIP image embeddings to pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.decode import DecodeOptions, decode
from ..core.pipelines.memory import decode_memory
from ..core.pipelines.noise import StartingNoise
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
    SEARCH_ALIASES = ["unclip decoder", "embedding to image", "image variation", "ksampler", "sampler"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("Pictures in the decoder's size, usually 64 pixels.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "decoder": inputs.decoder(),
                "seed": inputs.seed(),
                "steps": inputs.steps(
                    DecodeOptions.steps, "Denoising steps. More give cleaner detail and take longer."
                ),
                "guidance_scale": inputs.guidance_scale(
                    DecodeOptions.guidance_scale,
                    "How strongly the picture follows the embedding. 1 is without guidance; higher is "
                    "clearer and less varied, too high is garish.",
                ),
                "sampler": inputs.sampler(DecodeOptions.sampler),
                "batch_size": inputs.batch_size(
                    "Pictures to paint of one embedding. Leave it at 1 for a batch of embeddings: each gives "
                    "one picture."
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
                **inputs.negatives(),
                "eta": inputs.eta(),
                **inputs.guidance_interval(),
                "guidance_rescale": inputs.guidance_rescale(),
                "dynamic_threshold": inputs.number(
                    0.0,
                    0.0,
                    1.0,
                    0.005,
                    "Tames garish colours of strong guidance: the share of values kept within range at every "
                    "step. 0 is off; 0.995 is usual.",
                    round=0.001,
                    advanced=True,
                ),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None,
        seed: int,
        steps: int,
        guidance_scale: float,
        sampler: str,
        batch_size: int,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        noise: StartingNoise | None = None,
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        eta: float = 0.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
        dynamic_threshold: float = 0.0,
    ) -> tuple[Tensor]:
        decoder = sockets.require_stage(decoder, "decoder")
        options = DecodeOptions(
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=inputs.time_interval(guidance_start, guidance_end),
            guidance_rescale=guidance_rescale,
            sampler=sampler,
            eta=eta,
            dynamic_threshold=dynamic_threshold or None,
        )
        needed = decode_memory(
            decoder, guidance_scale, batch_size, embedding, text, noise, negative_embedding, negative_text
        )
        with (
            placement.on_device(decoder, needed),
            host.stage_progress("Decode", steps, pictures=True) as on_step,
        ):
            pixels = decode(
                decoder,
                embedding,
                text,
                seed=seed,
                batch_size=batch_size,
                options=options,
                noise=None if noise is None else noise.values,
                negative_embedding=negative_embedding,
                negative_text=negative_text,
                callback=on_step,
            )
            return (sockets.image_from_core(pixels).to(host.result_device()),)
