"""The CLIP spaces of published checkpoints, told by their width: their files do not name them."""

from __future__ import annotations

from torch import Tensor

from ...embeddings.space import EmbeddingSpace, NormConvention

_BY_WIDTH = {
    768: "openai/ViT-L-14",  # Karlo, Kandinsky 2.1, LAION's DALLE2-pytorch, unclip-l
    1024: "laion/ViT-H-14",  # unclip-h
    1280: "laion/ViT-bigG-14",  # Kandinsky 2.2
}


def space_id(dim: int) -> str:
    """The id of the CLIP space of a width: of the CLIP model that unCLIP's stages of it were made for."""
    return _BY_WIDTH.get(dim, f"clip-{dim}")


def clip_space(
    dim: int, norm: NormConvention = "raw", mean: Tensor | None = None, std: Tensor | None = None
) -> EmbeddingSpace:
    """The CLIP space of a width, with the statistics (of D values) of a checkpoint where it has some."""
    return EmbeddingSpace(space_id(dim), dim, norm, _values(mean), _values(std))


def _values(statistics: Tensor | None) -> tuple[float, ...] | None:
    return None if statistics is None else tuple(statistics.double().flatten().tolist())
