"""Prior nodes: from a caption's features to CLIP image embeddings."""

from __future__ import annotations

from typing import Any

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.ar_prior import AutoregressiveOptions, sample_autoregressive_prior
from ..core.pipelines.conditioning import null_embedding
from ..core.pipelines.encode import text_as_image_embedding
from ..core.pipelines.memory import encode_memory, prior_memory
from ..core.pipelines.options import from_settings
from ..core.pipelines.prior import (
    PriorOptions,
    prior_rows,
    sample_diffusion_prior,
    sample_negative_embedding,
)
from ..core.pipelines.repeats import repeat_each, results_to_make
from ..core.pipelines.rows import count_on
from ..core.pipelines.towers import image_tower
from ..core.stages import ClipStage, DecoderStage, PriorStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/prior"


class UnCLIPDiffusionPrior:
    """A caption to image embeddings, by diffusion."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Imagines what a picture of the caption could show: turns the encoded caption into CLIP image "
        "embeddings. Every seed imagines another picture; the decoder paints it."
    )
    SEARCH_ALIASES = [
        "prior",
        "unclip prior",
        "text to image embedding",
        "text to embedding",
        "dalle",
        "text2img",
    ]
    RETURN_TYPES = (sockets.EMBEDDING, sockets.EMBEDDING)
    RETURN_NAMES = ("embedding", "negative_embedding")
    OUTPUT_TOOLTIPS = (
        "Image embeddings: batch_size of them, or repeat of each caption of a batch.",
        "With negative_text: what a picture of it could show, for negative_embedding of unCLIP Decode. Else "
        "empty: the decoder then leads away from nothing in particular.",
    )
    FUNCTION = "execute"
    OPTIONS = PriorOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "prior": inputs.socket(
                    sockets.PRIOR,
                    "A diffusion prior of the CLIP model of the caption. An autoregressive prior has its own "
                    "node.",
                ),
                "text": inputs.socket(sockets.TEXT, "The encoded caption."),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "guidance_scale", "candidates"),
                "batch_size": inputs.batch_size("Embeddings to make, each with its own seed."),
                **inputs.take(options, "sampler"),
            },
            "optional": {
                **inputs.take(options, "eta", "guidance_start", "guidance_end", "guidance_rescale"),
                "repeat": inputs.repeat("Embeddings"),
                **options,
                "negative_text": inputs.socket(
                    sockets.TEXT,
                    "The encoded caption that guidance leads away from, instead of an empty one.",
                ),
                "image_embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "An embedding to begin from instead of noise alone, such as that of a picture; strength "
                    "says how much of it the caption may change.",
                ),
                "keep": inputs.integer(
                    1,
                    1,
                    64,
                    "How many of the candidates of each result are kept, the one that fits the caption best "
                    "first. More than 1 gives a batch to choose from.",
                    advanced=True,
                ),
            },
        }

    def execute(
        self,
        prior: PriorStage | None,
        text: TextFeatures,
        seed: int,
        batch_size: int,
        repeat: int = 1,
        negative_text: TextFeatures | None = None,
        image_embedding: Embedding | None = None,
        keep: int = 1,
        **given: Any,
    ) -> tuple[Embedding, Embedding | None]:
        prior = sockets.require_stage(prior, "prior")
        options = from_settings(self.OPTIONS, given)
        others = {"negative_text": negative_text, "image_embedding": image_embedding}
        sizes = {name: len(each) for name, each in others.items() if each is not None}
        rows = results_to_make(repeat, batch_size, text=len(text), **sizes)
        text, negative_text = repeat_each(text, rows), repeat_each(negative_text, rows)
        image_embedding = repeat_each(image_embedding, rows)
        needed = prior_memory(prior, len(text), prior_rows(options, len(text), rows), options.steps)
        parts = 1 if negative_text is None else 2
        with placement.sampling(prior, needed, "Prior", parts * options.steps, pictures=False) as on_step:
            embedding = sample_diffusion_prior(
                prior,
                text,
                seed=seed,
                batch_size=rows,
                options=options,
                negative_text=negative_text,
                image_embedding=image_embedding,
                keep=keep,
                callback=count_on(on_step, 0, parts),
            )
            negative = None
            if negative_text is not None:
                negative = sample_negative_embedding(
                    prior,
                    negative_text,
                    seed=seed,
                    batch_size=rows,
                    options=options,
                    callback=count_on(on_step, 1, parts),
                ).to(host.result_device())
                negative = repeat_each(negative, rows * keep)  # one for all that are kept of a result
            return embedding.to(host.result_device()), negative


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
    OUTPUT_TOOLTIPS = ("Image embeddings: batch_size of them, or repeat of each caption of a batch.",)
    FUNCTION = "execute"
    OPTIONS = AutoregressiveOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "prior": inputs.socket(
                    sockets.PRIOR,
                    "An autoregressive prior of the CLIP model of the caption: the output ar_prior of Load "
                    "unCLIP Bundle, or a file in Load unCLIP Prior. A diffusion prior has its own node.",
                ),
                "text": inputs.socket(sockets.TEXT, "The encoded caption."),
                "seed": inputs.seed(),
                **inputs.take(options, "guidance_scale", "temperature", "candidates"),
                "batch_size": inputs.batch_size("Embeddings to make, each with its own seed."),
            },
            "optional": {
                **inputs.take(options, "top_p", "top_k"),
                "repeat": inputs.repeat("Embeddings"),
                **options,
            },
        }

    def execute(
        self,
        prior: PriorStage | None,
        text: TextFeatures,
        seed: int,
        batch_size: int,
        repeat: int = 1,
        **given: Any,
    ) -> tuple[Embedding]:
        prior = sockets.require_stage(prior, "prior")
        options = from_settings(self.OPTIONS, given)
        rows = results_to_make(repeat, batch_size, text=len(text))
        text = repeat_each(text, rows)
        codes = getattr(prior.network.config, "components", 1)  # another kind of prior is refused below
        needed = prior_memory(prior, len(text), rows * options.candidates, codes)
        with placement.sampling(prior, needed, "Prior", codes, pictures=False) as on_step:
            embedding = sample_autoregressive_prior(
                prior, text, seed=seed, batch_size=rows, options=options, callback=on_step
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
            },
            "optional": {
                "repeat": inputs.integer(
                    1, 1, 256, "Copies to make of each caption of a batch, one after the other."
                )
            },
        }

    def execute(self, text: TextFeatures, batch_size: int, repeat: int = 1) -> tuple[Embedding]:
        rows = results_to_make(repeat, batch_size, text=len(text))
        return (text_as_image_embedding(repeat_each(text, rows), rows).to(host.result_device()),)


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
            },
            "optional": {
                "clip": inputs.socket(
                    sockets.CLIP,
                    "Only for a Kandinsky decoder that was loaded without its prior: the CLIP model of the "
                    "prior. Nothing is then the embedding of an all-zero picture, which it encodes.",
                )
            },
        }

    def execute(
        self, decoder: DecoderStage | None, batch_size: int, clip: ClipStage | None = None
    ) -> tuple[Embedding]:
        decoder = sockets.require_stage(decoder, "decoder")
        if clip is None:
            return (null_embedding(decoder, batch_size).to(host.result_device()),)
        clip = image_tower(clip)
        with placement.on_device(clip, encode_memory(clip, 1)):
            return (null_embedding(decoder, batch_size, clip).to(host.result_device()),)
