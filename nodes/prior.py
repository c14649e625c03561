"""Prior nodes: from a caption's features to CLIP image embeddings."""

from __future__ import annotations

from typing import Any

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.ar_prior import AutoregressiveOptions, sample_autoregressive_prior
from ..core.pipelines.decode import null_embedding
from ..core.pipelines.encode import text_as_image_embedding
from ..core.pipelines.memory import prior_memory
from ..core.pipelines.prior import PriorOptions, sample_diffusion_prior
from ..core.stages import DecoderStage, PriorStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/prior"


def _candidates(default: int) -> inputs.Input:
    return inputs.integer(
        default,
        1,
        64,
        "Embeddings made for each result; the one that fits the caption best is kept. The paper takes 2.",
    )


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
                "prior": inputs.socket(
                    sockets.PRIOR,
                    "A diffusion prior of the CLIP model of the caption. An autoregressive prior has its own "
                    "node.",
                ),
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
                "candidates": _candidates(PriorOptions.candidates),
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
        needed = prior_memory(prior, len(text), max(len(text), batch_size) * candidates, steps)
        with placement.on_device(prior, needed), host.stage_progress("Prior", steps) as on_step:
            embedding = sample_diffusion_prior(
                prior, text, seed=seed, batch_size=batch_size, options=options, callback=on_step
            )
            return (embedding.to(host.result_device()),)


class UnCLIPAutoregressivePrior:
    """A caption to image embeddings, code by code."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Imagines what a picture of the caption could show: puts an image embedding together piece by piece, "
        "each chosen in view of the caption and of those before it. Takes the place of the diffusion prior."
    )
    SEARCH_ALIASES = ["prior", "ar prior", "text to image embedding", "text to embedding"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("Image embeddings, batch_size of them.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        defaults = AutoregressiveOptions
        return {
            "required": {
                "prior": inputs.socket(
                    sockets.PRIOR,
                    "An autoregressive prior of the CLIP model of the caption, such as mini/ar-prior in Load "
                    "unCLIP Prior. A diffusion prior has its own node.",
                ),
                "text": inputs.socket(sockets.TEXT, "The encoded caption."),
                "seed": inputs.seed(),
                "guidance_scale": inputs.guidance_scale(
                    defaults.guidance_scale,
                    "How closely the embedding follows the caption. 1 is without guidance; higher is closer "
                    "to the caption and less varied.",
                ),
                "temperature": inputs.number(
                    defaults.temperature,
                    0.05,
                    2.0,
                    0.05,
                    "How freely the pieces are chosen. Lower keeps to the likeliest ones, 1 is as varied as "
                    "the pictures that the prior has learnt from.",
                ),
                "candidates": _candidates(defaults.candidates),
                "batch_size": inputs.batch_size("Embeddings to make, each with its own seed."),
            },
            "optional": {
                "top_p": inputs.number(
                    defaults.top_p,
                    0.05,
                    1.0,
                    0.05,
                    "Leaves out unlikely choices: only the likeliest ones, which together have this "
                    "probability, are open. 1 leaves out none.",
                    advanced=True,
                ),
                "top_k": inputs.integer(
                    defaults.top_k,
                    0,
                    4096,
                    "Leaves out unlikely choices: only so many of the likeliest ones are open. 0 leaves out "
                    "none, 1 always takes the likeliest.",
                    advanced=True,
                ),
            },
        }

    def execute(
        self,
        prior: PriorStage | None,
        text: TextFeatures,
        seed: int,
        guidance_scale: float,
        temperature: float,
        candidates: int,
        batch_size: int,
        top_p: float = AutoregressiveOptions.top_p,
        top_k: int = AutoregressiveOptions.top_k,
    ) -> tuple[Embedding]:
        prior = sockets.require_stage(prior, "prior")
        options = AutoregressiveOptions(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            candidates=candidates,
        )
        codes = getattr(prior.network.config, "components", 1)  # another kind of prior is refused below
        needed = prior_memory(prior, len(text), max(len(text), batch_size) * candidates, codes)
        with placement.on_device(prior, needed), host.stage_progress("Prior", codes) as on_step:
            embedding = sample_autoregressive_prior(
                prior, text, seed=seed, batch_size=batch_size, options=options, callback=on_step
            )
            return (embedding.to(host.result_device()),)


class UnCLIPTextAsImageEmbedding:
    """A caption's text embedding in the place of an image embedding."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes pictures without a prior: hands the caption's own text embedding on as if it were an image "
        "embedding. Beside the priors it shows what they are good for: expect plainer, less fitting pictures."
    )
    SEARCH_ALIASES = ["no prior", "skip prior", "text embedding as image embedding"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("The caption's text embedding, to be used as an image embedding.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "text": inputs.socket(
                    sockets.TEXT,
                    "The encoded caption. Its text embedding is used as it is, although a decoder has learnt "
                    "from image embeddings only: the more a CLIP model keeps the two apart, the worse.",
                ),
                "batch_size": inputs.batch_size(
                    "Copies to make. All are equal; the decoder's seeds make different pictures of them."
                ),
            }
        }

    def execute(self, text: TextFeatures, batch_size: int) -> tuple[Embedding]:
        return (text_as_image_embedding(text, batch_size).to(host.result_device()),)


class UnCLIPNullEmbedding:
    """No image embedding, as a decoder has learnt it."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Leaves the image embedding out: gives the decoder what it saw in training in place of one, so that "
        "it paints from the caption alone. Beside a prior it shows how much the embedding brings."
    )
    SEARCH_ALIASES = ["zero embedding", "empty embedding", "unconditional", "no prior", "caption only"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("What stands for no image embedding, for this decoder only.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "decoder": inputs.socket(
                    sockets.DECODER, "The decoder that will paint it. Each has its own idea of nothing."
                ),
                "batch_size": inputs.batch_size(
                    "Copies to make. All are equal; the decoder's seeds make different pictures of them."
                ),
            }
        }

    def execute(self, decoder: DecoderStage | None, batch_size: int) -> tuple[Embedding]:
        decoder = sockets.require_stage(decoder, "decoder")
        return (null_embedding(decoder, batch_size).to(host.result_device()),)
