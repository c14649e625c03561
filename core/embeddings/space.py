"""CLIP embeddings that know which space they live in.

Two CLIP models of equal width give vectors that look alike and mean nothing to each other; a prior trained
for one and a decoder trained for the other make noise without any error. So embeddings carry their space.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require_kind
from ..memory import InMemory

NormConvention = Literal["raw", "unit"]

_LARGEST = 1e12  # statistics beyond it, or standard deviations below its inverse, overflow in float32


@dataclass(frozen=True)
class EmbeddingSpace:
    """The joint text and image space of one CLIP model.

    Attributes:
        id: name of the CLIP model, for example ``"openai/ViT-L-14"``. Spaces of the same id are the same.
        dim: width D of its embeddings.
        norm: ``"raw"`` where embeddings are used as the towers give them, ``"unit"`` where L2-normalised.
        mean: per-component mean of the image embeddings, length D, or None where the source gives none.
        std: per-component standard deviation of the image embeddings, length D, or None.
    """

    id: str
    dim: int
    norm: NormConvention = "raw"
    mean: tuple[float, ...] | None = field(default=None, repr=False)
    std: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.dim:
                raise ValueError(
                    f"embedding space {self.id!r}: {name} has {len(values)} values, expected {self.dim} "
                    f"(one per component)"
                )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"embedding space {self.id!r}: mean and std must be given together")
        if not all(abs(value) <= _LARGEST for value in self.mean or ()):
            raise ValueError(
                f"embedding space {self.id!r}: mean has values that are not finite; get the statistics again"
            )
        if not all(1 / _LARGEST <= value <= _LARGEST for value in self.std or ()):
            raise ValueError(
                f"embedding space {self.id!r}: std has values that are not positive and finite; get the "
                f"statistics again"
            )

    def standardise(self, embedding: Tensor) -> Tensor:
        """[..., D] in the convention of the space → [..., D] of about zero mean and unit variance.

        The scaling in which a diffusion prior works: with statistics (x − mean) / std; without them a unit
        space is scaled by √D (DALLE2-pytorch's ``image_embed_scale``), and a raw one is left as it is.
        """
        if self.mean is not None:
            return (embedding - embedding.new_tensor(self.mean)) / embedding.new_tensor(self.std)
        return embedding * self.dim**0.5 if self.norm == "unit" else embedding

    def unstandardise(self, standardised: Tensor) -> Tensor:
        """Inverse of :meth:`standardise`."""
        if self.mean is not None:
            return standardised * standardised.new_tensor(self.std) + standardised.new_tensor(self.mean)
        return standardised / self.dim**0.5 if self.norm == "unit" else standardised

    @property
    def typical_norm(self) -> float | None:
        """Root mean square length √Σ(mean² + std²) of image embeddings; None where it is not known."""
        if self.norm == "unit":
            return 1.0
        if self.mean is None or self.std is None:
            return None
        return sum(value**2 for value in (*self.mean, *self.std)) ** 0.5

    def in_convention(self, vectors: Tensor) -> Tensor:
        """[..., D] as a tower gives them → in the norm convention of the space."""
        return F.normalize(vectors, dim=-1) if self.norm == "unit" else vectors


@dataclass(frozen=True, eq=False)
class Embedding(InMemory):
    """A batch of CLIP embeddings, [B, D], of one space."""

    vectors: Tensor
    space: EmbeddingSpace

    def __post_init__(self) -> None:
        require_kind(Tensor, "a tensor [batch, D]", vectors=self.vectors)
        if self.vectors.ndim != 2 or self.vectors.shape[1] != self.space.dim:
            raise ValueError(
                f"embedding has shape {tuple(self.vectors.shape)}, expected [batch, {self.space.dim}] "
                f"for the space {self.space.id!r}"
            )
        if not self.vectors.isfinite().all():
            raise ValueError(
                "embedding: it holds NaN or infinite values: something before it is damaged or overflowed; "
                "compute it in fp32, or load or encode it again"
            )

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def to(self, device: torch.device | str) -> Embedding:
        return replace(self, vectors=self.vectors.to(device))

    def in_norm_of(self, space: EmbeddingSpace, name: str = "embedding") -> Tensor:
        """The vectors in the norm convention of another part of the same space.

        Unit vectors (of LAION's prior) get the typical length of raw ones, which only statistics tell.

        Args:
            name: of the input, for the message.

        Raises:
            ValueError: unit vectors where raw ones are expected, and no statistics.
        """
        if space.norm == self.space.norm:
            return self.vectors
        if space.norm == "unit":
            return space.in_convention(self.vectors)
        length = space.typical_norm
        if length is None:
            raise ValueError(
                f"{name}: it has length 1, but embeddings of {space.id!r} as long as CLIP gives them are "
                f"expected here, and without statistics that length is not known. Use a decoder of a bundle "
                f"with statistics (Karlo's), or a prior that keeps the length"
            )
        return self.vectors * length


@dataclass(frozen=True, eq=False)
class TextFeatures(InMemory):
    """What a CLIP text encoder gives for a batch of captions.

    Attributes:
        tokens: [B, L, W] output of the final LayerNorm, before the projection.
        mask: [B, L] bool, True from the start token to the end token inclusive.
        pooled: [B, D] projected text embedding z_t, in the convention of ``space``.
        space: the CLIP space of ``pooled``.
        null: the same for the empty caption, batch 1: the unconditional branch of guidance.
        control: [B, D] image embeddings that a prior reads beside the captions (λ-ECLIPSE); None without.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    space: EmbeddingSpace
    null: TextFeatures | None = None
    control: Tensor | None = None

    def __len__(self) -> int:
        return self.pooled.shape[0]

    def to(self, device: torch.device | str) -> TextFeatures:
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            pooled=self.pooled.to(device),
            null=None if self.null is None else self.null.to(device),
            control=None if self.control is None else self.control.to(device),
        )

    def in_convention_of(self, space: EmbeddingSpace) -> TextFeatures:
        """z_t of the captions and of the empty one in the norm convention of ``space``."""
        return replace(
            self,
            pooled=space.in_convention(self.pooled),
            null=None if self.null is None else self.null.in_convention_of(space),
        )

    def rows(self, start: int, stop: int) -> TextFeatures:
        """Some of the captions; ``null`` stays."""
        return replace(
            self,
            tokens=self.tokens[start:stop],
            mask=self.mask[start:stop],
            pooled=self.pooled[start:stop],
            control=None if self.control is None else self.control[start:stop],
        )

    def expand(self, batch: int) -> TextFeatures:
        """The captions as ``batch`` rows: one for all of them, or each for as many as the others, one after
        the other.

        Raises:
            ValueError: a number that goes into ``batch`` with a remainder.
        """
        count = len(self)
        if count == batch:
            return self
        if not count or batch % count:
            raise ValueError(f"text has {count} captions, expected 1 or {batch} to match the batch")

        def rows(given: Tensor) -> Tensor:
            if count == 1:
                return given.expand(batch, *given.shape[1:])
            return given.repeat_interleave(batch // count, dim=0)

        return replace(
            self,
            tokens=rows(self.tokens),
            mask=rows(self.mask),
            pooled=rows(self.pooled),
            control=None if self.control is None else rows(self.control),
        )


def require_same_space(what: str, found: EmbeddingSpace, expected: EmbeddingSpace) -> None:
    """Raise a ValueError that names both spaces unless they are the same."""
    if found.id != expected.id or found.dim != expected.dim:
        raise ValueError(
            f"{what} is in the CLIP space {found.id!r} ({found.dim} dimensions), but {expected.id!r} "
            f"({expected.dim} dimensions) is expected here. Encode it with the CLIP model of this stage."
        )


def require_plain_text(what: str, text: TextFeatures) -> None:
    """Raise a ValueError where pictures stand among the words of captions, for λ-ECLIPSE's prior alone."""
    if text.control is not None:
        raise ValueError(
            f"{what}: pictures stand for words of this caption, and only λ-ECLIPSE's prior reads those. "
            f"Encode it with unCLIP Text Encode, or connect that prior"
        )


def require_text_of(what: str, text: TextFeatures, space: EmbeddingSpace, *, subjects: bool = False) -> None:
    """Raise a ValueError unless captions are of a space and, without ``subjects``, nothing but words."""
    require_same_space(what, text.space, space)
    if not subjects:
        require_plain_text(what, text)
