"""The augment node: embeddings made weaker, stronger or noisier."""

from __future__ import annotations

from typing import Any

from ..core.embeddings.space import Embedding
from ..core.pipelines.augment import augment
from . import inputs, sockets

CATEGORY = "unCLIP/embedding"


class UnCLIPAugment:
    """A cloud of embeddings around one."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes an image embedding weaker, stronger or noisier, as often as you like: decoded, a cloud of "
        "pictures around one, that drift further from it the more noise there is."
    )
    SEARCH_ALIASES = ["noise augmentation", "strength", "variety", "noise level", "remix", "jitter"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("The changed embeddings: all copies of the first, then of the next.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING, "What is changed: from a prior, or from encoded pictures."
                ),
                "strength": inputs.number(
                    1.0,
                    0.0,
                    2.0,
                    0.05,
                    "How much of the embedding stays: 1 all of it, 0 only what all pictures share, more than "
                    "1 exaggerates it.",
                ),
                "noise_level": inputs.number(
                    0.0,
                    0.0,
                    1.0,
                    0.01,
                    "Noise put on the embedding: 0 none, 1 nothing but noise. What the picture shows drifts "
                    "with it.",
                ),
                "seed": inputs.seed(),
                "repeat": inputs.integer(
                    1,
                    1,
                    256,
                    "Copies of each embedding, each with noise of its own: copy k of row r has the seed + "
                    "r · repeat + k.",
                ),
            }
        }

    def execute(
        self, embedding: Embedding, strength: float, noise_level: float, seed: int, repeat: int
    ) -> tuple[Embedding]:
        return (augment(embedding, strength, noise_level, seed=seed, repeat=repeat),)
