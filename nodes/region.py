"""Region nodes: parts of a picture that show something of their own."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.regions import Region, Regions
from . import inputs, sockets

CATEGORY = "unCLIP/decode"
logger = logging.getLogger(__name__)


class UnCLIPRegion:
    """An embedding for a masked part of the picture that is decoded."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Gives a part of the picture an embedding of its own: connect it to the regions of unCLIP Decode. "
        "Chain several by their regions, one for each part."
    )
    SEARCH_ALIASES = [
        "regional prompt",
        "attention couple",
        "area composition",
        "conditioning set mask",
        "regional embedding",
    ]
    RETURN_TYPES = (sockets.REGIONS,)
    RETURN_NAMES = ("regions",)
    OUTPUT_TOOLTIPS = ("The regions that came in, and this one, for unCLIP Decode.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "mask": inputs.socket(
                    sockets.MASK,
                    "Where the region is: white (1), in any size. It is stretched to the picture.",
                ),
            },
            "optional": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "What the region shows: from a prior, or from encoded pictures. Only decoders that paint "
                    "captions alone (GLIDE) go without.",
                ),
                "text": inputs.socket(
                    sockets.TEXT,
                    "The encoded caption of the region, for decoders that read captions. Without one it has "
                    "none, whatever the whole picture has.",
                ),
                "regions": inputs.socket(
                    sockets.REGIONS,
                    "Regions before this one. Where masks overlap, they share the place.",
                ),
                "strength": inputs.number(
                    1.0,
                    0.0,
                    1.0,
                    0.05,
                    "How much the region counts inside of its mask: the rest is the whole picture's own "
                    "embedding. 0 is without the region.",
                    advanced=True,
                ),
            },
        }

    def execute(
        self,
        mask: Tensor,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        regions: Regions | None = None,
        strength: float = 1.0,
    ) -> tuple[Regions]:
        before = () if regions is None else regions.items
        region = Region(sockets.mask_to_core(mask), embedding, text, strength)
        if strength > 0 and not bool((region.mask > 0).any()):
            logger.warning(
                "mask: is empty, so region number %d is nowhere and has no effect. Load Image gives an empty "
                "mask for pictures without one: open the mask editor, or use unCLIP Region Mask",
                len(before) + 1,
            )
        return (Regions((*before, region)),)
