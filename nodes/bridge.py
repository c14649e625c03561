"""Bridge nodes: CLIP embeddings, the decoder and its autoencoder, to and from ComfyUI's own nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from ..core.formats.mapping.spaces import clip_space
from ..core.pipelines.conditions import Conditions
from ..core.stages import ClipStage, DecoderStage, PriorStage
from . import host, inputs, placement, sockets
from .native_model import Conditioning, native_conditioning, native_model
from .native_vae import native_vae

CATEGORY = "unCLIP/bridge"

ANY = "any"
# What ComfyUI's own models read, by the width of their CLIP model.
TARGETS = {"sd21-unclip-l": 768, "sd21-unclip-h": 1024, "sdxl-revision": 1280}

Stage = ClipStage | PriorStage | DecoderStage


class UnCLIPToClipVision:
    """Image embeddings to ComfyUI's CLIP vision outputs."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Hands image embeddings to ComfyUI's own nodes as CLIP Vision Encode would, one by one: into "
        "unCLIPConditioning for Stable Diffusion 2.1 unCLIP or SDXL. So a prior or a blend of embeddings "
        "steers those models."
    )
    SEARCH_ALIASES = ["unclip conditioning", "clip vision output", "sd21 unclip", "revision", "stable unclip"]
    RETURN_TYPES = (sockets.CLIP_VISION_OUTPUT,)
    RETURN_NAMES = ("clip_vision_output",)
    OUTPUT_TOOLTIPS = ("One CLIP vision output for each embedding; the nodes behind it run once for each.",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING, "Image embeddings, from a prior, from pictures or mixed."
                ),
                "target": inputs.choice(
                    [ANY, *TARGETS],
                    "The model that is to read them; embeddings of another CLIP model are refused. any does "
                    "not check.",
                ),
            },
            "optional": {
                "stage": stage_of_lengths(),
            },
        }

    def execute(self, embedding: Embedding, target: str, stage: Stage | None = None) -> tuple[list[Any]]:
        if target != ANY:
            require_target(embedding.space, target)
        vectors = raw_vectors(embedding, stage).float().to(host.result_device())
        return ([host.clip_vision_output(row) for row in vectors.split(1)],)  # [1, D] each


class UnCLIPFromClipVision:
    """ComfyUI's CLIP vision outputs to image embeddings."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Takes the image embeddings out of a CLIP vision output, as CLIP Vision Encode gives it, so that "
        "they can be decoded, blended or saved here."
    )
    SEARCH_ALIASES = ["clip vision encode", "clip vision output", "image embeds", "import embedding"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("One image embedding for each encoded picture.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "clip_vision_output": inputs.socket(
                    sockets.CLIP_VISION_OUTPUT,
                    "From CLIP Vision Encode, with the CLIP model that the decoder was made for.",
                ),
            },
            "optional": {
                "stage": inputs.socket(
                    sockets.STAGE,
                    "A CLIP model, prior or decoder of the space that the embeddings belong to. Without it "
                    "the space is told by their width: 768 is OpenAI's ViT-L/14, 1024 OpenCLIP's ViT-H/14, "
                    "1280 OpenCLIP's ViT-bigG/14.",
                ),
            },
        }

    def execute(self, clip_vision_output: Any, stage: Stage | None = None) -> tuple[Embedding]:
        vectors = _image_embeds(clip_vision_output)
        space = _space_of_width(vectors.shape[1]) if stage is None else stage.space
        if vectors.shape[1] != space.dim:
            raise ValueError(
                f"clip_vision_output: its embeddings have {vectors.shape[1]} dimensions, but those of the "
                f"CLIP space {space.id!r} of the connected stage have {space.dim}. Encode the picture with "
                f"the CLIP vision model of this stage, or connect a stage of the other CLIP model."
            )
        return (Embedding(space.in_convention(vectors).to(host.result_device()), space),)


class UnCLIPDecoderAsModel:
    """The decoder for ComfyUI's own samplers."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes of a decoder a model for ComfyUI's own KSampler, with the conditioning to go with it. "
        "Kandinsky's starts from Empty Latent Image and is decoded with unCLIP Autoencoder as VAE; the "
        "latent of the others is the picture itself: EmptyChromaRadianceLatentImage in the decoder's size, "
        "and the VAE pixel_space. Experimental; unCLIP Decode can do more."
    )
    SEARCH_ALIASES = ["ksampler", "native sampler", "model", "custom sampler", "scheduler"]
    RETURN_TYPES = (sockets.MODEL, sockets.CONDITIONING, sockets.CONDITIONING)
    RETURN_NAMES = ("model", "positive", "negative")
    OUTPUT_TOOLTIPS = (
        "The decoder, for KSampler and other samplers.",
        "What the picture shows: the embedding and the caption.",
        "What guidance leads away from: the condition without embedding and caption, or the negative ones.",
    )
    FUNCTION = "execute"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "decoder": inputs.decoder(),
            },
            "optional": {
                "embedding": inputs.decoded_embedding(),
                "text": inputs.decoded_text(),
                **inputs.negatives(),
                "hint": inputs.hint(),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        hint: Tensor | None = None,
    ) -> tuple[Any, Conditioning, Conditioning]:
        decoder = sockets.require_stage(decoder, "decoder")
        picture = None if hint is None else sockets.image_to_core(hint, "hint")
        given = Conditions(embedding, text, negative_embedding, negative_text, picture)
        model = native_model(decoder)
        with placement.on_device(decoder):
            positive, negative = native_conditioning(decoder, given)
        return (model, positive, negative)


class UnCLIPAutoencoderAsVAE:
    """The autoencoder of a decoder for ComfyUI's own VAE nodes."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes of the autoencoder of a Kandinsky decoder (MoVQ) a VAE for ComfyUI's own nodes: VAE Decode "
        "and VAE Encode, their tiled kinds, and VAE Encode (for Inpainting). For the latents of unCLIP "
        "Decoder as Model."
    )
    SEARCH_ALIASES = ["movq", "vae", "vae decode", "vae encode", "kandinsky vae", "tiled vae"]
    RETURN_TYPES = (sockets.VAE,)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The autoencoder, for VAE Decode, VAE Encode and other nodes that take a VAE.",)
    FUNCTION = "execute"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "decoder": inputs.socket(
                    sockets.DECODER, "A decoder that paints latents: Kandinsky 2.1's or 2.2's."
                ),
            },
        }

    def execute(self, decoder: DecoderStage | None) -> tuple[Any]:
        return (native_vae(sockets.require_stage(decoder, "decoder")),)


def stage_of_lengths() -> inputs.Input:
    """An input for the stage that :func:`raw_vectors` takes."""
    return inputs.socket(
        sockets.STAGE,
        "Only for embeddings of length 1, such as those of LAION's prior: a CLIP model, prior or decoder "
        "of the same space with statistics, such as Karlo's prior, to tell their length.",
    )


def require_target(
    space: EmbeddingSpace, target: str, targets: Mapping[str, int] = TARGETS, name: str = "target"
) -> None:
    """Raise a ValueError unless embeddings are of the CLIP space that a model reads.

    Args:
        targets: models, and the widths of the CLIP spaces that they read.
        name: of the input that names the model.
    """
    if target not in targets:
        raise ValueError(f"{name}: found {target!r}, expected one of {', '.join([ANY, *targets])}")
    expected = clip_space(targets[target])
    if (space.id, space.dim) != (expected.id, expected.dim):
        raise ValueError(
            f"embedding: is in the CLIP space {space.id!r} ({space.dim} dimensions), but {target} reads "
            f"{expected.id!r} ({expected.dim} dimensions). Use a prior or CLIP model of that space, or "
            f"another {name}."
        )


def raw_vectors(embedding: Embedding, stage: Stage | None, name: str = "embedding") -> Tensor:
    """[B, D] in the length that CLIP gives them, whatever the convention of their space.

    Args:
        name: of the input that gave them, for messages.
    """
    if stage is not None and (stage.space.id, stage.space.dim) != (embedding.space.id, embedding.space.dim):
        raise ValueError(
            f"stage: is of the CLIP space {stage.space.id!r} ({stage.space.dim} dimensions), but the "
            f"{name} is in {embedding.space.id!r} ({embedding.space.dim} dimensions). Connect a stage of "
            f"the same CLIP model, or none."
        )
    raw = replace((stage or embedding).space, norm="raw")
    if embedding.space.norm == "unit" and raw.typical_norm is None:
        what = "the connected stage has" if stage is not None else "it comes with"
        raise ValueError(
            f"{name}: those of {embedding.space.id!r} have length 1 here, but ComfyUI's models expect "
            f"them as long as CLIP makes them, and {what} no statistics that tell how long. Connect to "
            f"stage a prior or decoder of this CLIP model that has them, such as Karlo's prior."
        )
    return embedding.in_norm_of(raw)


def _image_embeds(clip_vision_output: Any) -> Tensor:
    """[B, D] float32."""
    vectors = getattr(clip_vision_output, "image_embeds", None)
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) < 1:
        found = f"image embeddings of shape {list(vectors.shape)}" if isinstance(vectors, Tensor) else "none"
        raise ValueError(
            f"clip_vision_output: found {found}, expected [pictures, dimensions]. Encode "
            f"the picture with a CLIP vision model that projects into CLIP space."
        )
    if not vectors.isfinite().all():
        raise ValueError(
            "clip_vision_output: its embeddings hold NaN or infinite values: the vision model overflowed "
            "or is damaged. Encode the picture again with another one."
        )
    return vectors.float()


def _space_of_width(dim: int) -> EmbeddingSpace:
    known = {width: clip_space(width).id for width in TARGETS.values()}
    if dim not in known:
        listed = ", ".join(f"{width} ({name})" for width, name in known.items())
        raise ValueError(
            f"clip_vision_output: embeddings of {dim} dimensions do not tell their CLIP model; known are "
            f"{listed}. Connect to stage a CLIP model, prior or decoder that they belong to."
        )
    return clip_space(dim)
