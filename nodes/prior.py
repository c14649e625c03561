"""Prior nodes: from a caption's features to CLIP image embeddings."""

from __future__ import annotations

from typing import Any

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.prior import PriorOptions, sample_diffusion_prior
from ..core.stages import PriorStage
from . import host, inputs, sockets

CATEGORY = "unCLIP/prior"


class UnCLIPDiffusionPrior:
    """A caption to image embeddings, by diffusion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Imagines what a picture of the caption could show: turns the encoded caption into CLIP image "
        "embeddings. Every seed imagines another picture; the decoder paints it."
    )
    SEARCH_ALIASES = ["prior", "unclip prior", "text to image embedding", "text to embedding"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("Image embeddings, batch_size of them.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "prior": inputs.socket(sockets.PRIOR, "A diffusion prior of the CLIP model of the caption."),
                "text": inputs.socket(sockets.TEXT, "The encoded caption."),
                "seed": inputs.seed(),
                "steps": inputs.steps(
                    PriorOptions.steps, "Denoising steps. 25 are plenty; fewer are faster and blander."
                ),
                "guidance_scale": inputs.guidance_scale(
                    PriorOptions.guidance_scale,
                    "How closely the embedding follows the caption. 1 is without guidance; higher is closer "
                    "to the caption and less varied.",
                ),
                "candidates": inputs.integer(
                    PriorOptions.candidates,
                    1,
                    64,
                    "Embeddings made for each result; the one that fits the caption best is kept. The paper "
                    "takes 2.",
                ),
                "batch_size": inputs.batch_size("Embeddings to make, each with its own seed."),
                "sampler": inputs.sampler(PriorOptions.sampler),
            },
            "optional": {
                "eta": inputs.eta(),
                **inputs.guidance_interval(),
                "guidance_rescale": inputs.guidance_rescale(),
            },
        }

    def execute(
        self,
        prior: PriorStage | None,
        text: TextFeatures,
        seed: int,
        steps: int,
        guidance_scale: float,
        candidates: int,
        batch_size: int,
        sampler: str,
        eta: float = 0.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        guidance_rescale: float = 0.0,
    ) -> tuple[Embedding]:
        prior = sockets.require_stage(prior, "prior")
        options = PriorOptions(
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=inputs.time_interval(guidance_start, guidance_end),
            guidance_rescale=guidance_rescale,
            candidates=candidates,
            sampler=sampler,
            eta=eta,
        )
        with host.on_device(prior.network), host.stage_progress("Prior", steps) as on_step:
            embedding = sample_diffusion_prior(
                prior, text, seed=seed, batch_size=batch_size, options=options, callback=on_step
            )
            return (embedding.to(host.result_device()),)
