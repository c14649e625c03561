"""Encode nodes: captions and pictures into CLIP space."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.encode import encode_images, encode_text
from ..core.pipelines.memory import encode_memory
from ..core.stages import ClipStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/encode"


class UnCLIPTextEncode:
    """A caption to text features."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Encodes a caption with CLIP, for the prior and, where it reads captions, for the decoder."
    SEARCH_ALIASES = ["prompt", "caption", "clip text encode", "positive"]
    RETURN_TYPES = (sockets.TEXT,)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The encoded caption.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "clip": inputs.socket(
                    sockets.CLIP, "The CLIP model that belongs to the prior and the decoder."
                ),
                "text": (
                    sockets.STRING,
                    {
                        "default": "",
                        "multiline": True,
                        "placeholder": "a red fox",
                        "tooltip": "What the picture shows. It is taken word for word; what does not fit "
                        "into the CLIP model's context, usually 77 tokens, is cut off.",
                    },
                ),
            }
        }

    def execute(self, clip: ClipStage | None, text: str) -> tuple[TextFeatures]:
        clip = sockets.require_stage(clip, "clip")
        with placement.on_device(clip, encode_memory(clip, captions=1)):
            return (encode_text(clip, [text]).to(host.result_device()),)


class UnCLIPImageEncode:
    """Pictures to image embeddings."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Encodes pictures into CLIP image embeddings: what the pictures show, without their exact pixels. "
        "Decoding an embedding again makes variations of the picture."
    )
    SEARCH_ALIASES = ["image variation", "clip vision encode", "image embedding", "image to embedding"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("One image embedding for each picture.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "clip": inputs.socket(sockets.CLIP, "The CLIP model that belongs to the decoder."),
                "image": inputs.socket(
                    sockets.IMAGE,
                    "Pictures of any size; transparency is dropped.",
                ),
            },
            "optional": {
                "fit": inputs.choice(
                    ["crop", "squash"],
                    "CLIP sees a square: crop takes the middle of the picture, squash distorts all of it.",
                    advanced=True,
                ),
            },
        }

    def execute(self, clip: ClipStage | None, image: Tensor, fit: str = "crop") -> tuple[Embedding]:
        clip = sockets.require_stage(clip, "clip")
        pixels = sockets.image_to_core(image)
        with placement.on_device(clip, encode_memory(clip, pixels)):
            return (encode_images(clip, pixels, fit=fit).to(host.result_device()),)
