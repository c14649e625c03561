"""Parts of a picture that show something of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require_kind
from ..embeddings.space import Embedding, TextFeatures
from ..memory import InMemory
from .rows import CAPTIONS, EMBEDDINGS, MASKS, require_finite

_ROUNDING = 1e-4  # what masks that were resized leave of 1, and far less than can be seen


@dataclass(frozen=True, eq=False)
class Region(InMemory):
    """What a part of a picture shows, in place of what the whole of it does.

    Attributes:
        mask: [1 or B, 1, H, W] in 0..1 of any size, 1 = this region; between 0 and 1 it is mixed in.
        embedding: [1 or B, D]; None for decoders that take none.
        text: captions, 1 or B, for decoders that read text; None is no caption, not the picture's.
        strength: 0..1, what the mask is multiplied by.

    Raises:
        ValueError: a mask of another shape, values that are not finite, a strength out of range,
            or neither an embedding nor a caption.
    """

    mask: Tensor
    embedding: Embedding | None = None
    text: TextFeatures | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        require_kind(Tensor, MASKS, mask=self.mask)
        require_kind(Embedding | None, EMBEDDINGS, embedding=self.embedding)
        require_kind(TextFeatures | None, CAPTIONS, text=self.text)
        if self.mask.ndim != 4 or self.mask.shape[1] != 1 or 0 in self.mask.shape:
            raise ValueError(
                f"mask: found shape {tuple(self.mask.shape)}, expected [batch, 1, height, width]"
            )
        require_finite(mask=self.mask)
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; expected 0 (without the region) to 1")
        if self.embedding is None and self.text is None:
            raise ValueError(
                "embedding: a region shows something, and nothing is given; connect an embedding, or the "
                "caption for a decoder that paints captions alone"
            )

    def sizes(self, number: int) -> dict[str, int]:
        """Numbers of rows of what is there, by a name with the region's number."""
        given = {"mask": self.mask, "embedding": self.embedding, "text": self.text}
        return {f"regions ({part} {number})": len(rows) for part, rows in given.items() if rows is not None}


@dataclass(frozen=True, eq=False)
class Regions(InMemory):
    """Several regions, as they travel along a wire."""

    items: tuple[Region, ...]


def region_sizes(regions: Sequence[Region]) -> dict[str, int]:
    """Numbers of rows of all that there is, by a name that tells the region, counted from 1."""
    return {
        name: rows for number, region in enumerate(regions, 1) for name, rows in region.sizes(number).items()
    }


def region_weights(regions: Sequence[Region], size: tuple[int, int]) -> list[Tensor]:
    """How much the whole picture's own conditions, and those of each region, count at every place.

    Where masks add up to more than 1 they share the place in proportion; what is missing to 1 is the whole
    picture's.

    Args:
        size: H and W of what is denoised. Masks are brought to it by the mean of what a pixel covers.

    Returns:
        The picture's weight, then one for each region: [1 or B, 1, *size] float32 each, in 0..1, 1 in sum.
    """
    masks = [_resized(region.mask.float().clamp(0, 1) * region.strength, size) for region in regions]
    covered = torch.zeros(1, 1, *size)
    for mask in masks:
        covered = covered + mask.to(covered.device)
    full = covered > 1 - _ROUNDING
    share = torch.where(full, covered, 1.0)
    return [torch.where(full, 0.0, 1 - covered), *(mask.to(share.device) / share for mask in masks)]


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape[-2:]) == size:
        return mask
    return F.interpolate(mask, size, mode="bilinear", antialias=True).clamp(0, 1)
