"""Image embeddings to IP-Adapters, as the node pack ComfyUI_IPAdapter_plus takes them.

Its EMBEDS are a tensor. Of a base adapter they are ``image_embeds`` of ComfyUI's CLIP vision output, [B, D],
and zeros of that shape on the negative side (``IPAdapterEncoder`` and ``ipadapter_execute`` in
IPAdapterPlus.py of cubiq/ComfyUI_IPAdapter_plus, 9d076a3); its *plus* adapters read the hidden states of all
patches instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.embeddings.space import Embedding, require_same_space
from . import host, inputs, sockets
from .bridge import ANY, CATEGORY, Stage, raw_vectors, require_target, stage_of_lengths

# The image encoder that a base IP-Adapter was trained with → the width of its embeddings.
IMAGE_ENCODERS = {"vit-bigg": 1280, "vit-h": 1024, "vit-l": 768}


class UnCLIPToIPAdapter:
    """Image embeddings as the EMBEDS of ComfyUI_IPAdapter_plus."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Hands image embeddings to IPAdapter Embeds of the node pack ComfyUI_IPAdapter_plus, as IPAdapter "
        "Encoder would: so a prior, a blend or a text diff steers Stable Diffusion 1.5 or SDXL by a base "
        "IP-Adapter. Plus and FaceID adapters read more than embeddings and do not take them."
    )
    SEARCH_ALIASES = ["ip adapter", "ipadapter embeds", "image prompt", "sdxl", "sd15", "style transfer"]
    RETURN_TYPES = (sockets.EMBEDS, sockets.EMBEDS)
    RETURN_NAMES = ("pos_embed", "neg_embed")
    OUTPUT_TOOLTIPS = (
        "What the picture is to show: one row for each embedding.",
        "What guidance leads away from: zeros, as IPAdapter Encoder gives them, or negative_embedding.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING, "Image embeddings, from a prior, from pictures or mixed."
                ),
                "image_encoder": inputs.choice(
                    [ANY, *IMAGE_ENCODERS],
                    "The CLIP model that the IP-Adapter was made for; embeddings of another are refused. any "
                    "does not check.",
                ),
            },
            "optional": {
                "negative_embedding": inputs.socket(
                    sockets.EMBEDDING, "What guidance leads away from, one or as many as embedding has."
                ),
                "stage": stage_of_lengths(),
            },
        }

    def execute(
        self,
        embedding: Embedding,
        image_encoder: str,
        negative_embedding: Embedding | None = None,
        stage: Stage | None = None,
    ) -> tuple[Tensor, Tensor]:
        if image_encoder != ANY:
            require_target(embedding.space, image_encoder, IMAGE_ENCODERS, "image_encoder")
        positive = _embeds(embedding, stage, "embedding")
        if negative_embedding is None:
            return positive, torch.zeros_like(positive)
        require_same_space("negative_embedding", negative_embedding.space, embedding.space)
        if len(negative_embedding) not in (1, len(embedding)):
            raise ValueError(
                f"negative_embedding: found {len(negative_embedding)}, expected 1 or as many as "
                f"embedding has, {len(embedding)}"
            )
        negative = _embeds(negative_embedding, stage, "negative_embedding")
        return positive, negative.expand(len(positive), -1).clone()


def _embeds(embedding: Embedding, stage: Stage | None, name: str) -> Tensor:
    """[B, D] float32 in the length that CLIP gives them: ``image_embeds`` of CLIP Vision Encode."""
    return raw_vectors(embedding, stage, name).float().to(host.result_device())
