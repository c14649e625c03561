"""Image embeddings as sequences of codes: what an autoregressive prior reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .pca import PCA, fit_pca
from .quantise import Quantiser, fit_quantiser
from .space import Embedding, EmbeddingSpace


@dataclass(frozen=True, eq=False)
class EmbeddingCodec:
    """PCA coefficients of z_i in buckets (unCLIP 2204.06125, section 2.2), and the buckets of z_i·z_t.

    Attributes:
        pca: K principal components of the image embeddings.
        codes: buckets of each of the K coefficients.
        text: buckets of the same coefficients of z_t, which lies elsewhere in most CLIP spaces.
        match: buckets of the dot product z_i·z_t, each with as many of the training pairs: the upper half of
            the buckets is the top half of the training distribution.
    """

    pca: PCA
    codes: Quantiser
    text: Quantiser
    match: Quantiser

    def encode(self, embedding: Embedding) -> Tensor:
        """[B, D] → codes [B, K] int64, by decreasing variance. Raises ValueError for another CLIP space."""
        return self.codes.encode(self.pca.project(embedding))

    def decode(self, codes: Tensor) -> Embedding:
        """Codes [B, J ≤ K] of the first components → embeddings [B, D] float32, see ``PCA.reconstruct``."""
        return self.pca.reconstruct(self.codes.decode(codes))

    def encode_text(self, text: Tensor) -> Tensor:
        """z_t [B, D] → buckets of its coefficients [B, K] int64."""
        return self.text.encode(self.pca.project(Embedding(text, self.pca.space)))

    def encode_match(self, dot_products: Tensor) -> Tensor:
        """z_i·z_t [B] → bucket numbers [B] int64."""
        return self.match.encode(dot_products[:, None])[:, 0]

    def state(self) -> dict[str, Tensor]:
        """The tensors, by the names that they have in a checkpoint."""
        return {
            "pca_mean": self.pca.mean,
            "pca_components": self.pca.components,
            "pca_variances": self.pca.variances,
            "pca_total_variance": self.pca.total_variance,
            "code_edges": self.codes.edges,
            "code_centres": self.codes.centres,
            "text_edges": self.text.edges,
            "text_centres": self.text.centres,
            "match_edges": self.match.edges[0],
            "match_centres": self.match.centres[0],
        }

    @staticmethod
    def from_state(state: Mapping[str, Tensor], space: EmbeddingSpace) -> EmbeddingCodec:
        """The inverse of :meth:`state`."""
        pca = PCA(
            state["pca_mean"],
            state["pca_components"],
            state["pca_variances"],
            state["pca_total_variance"],
            space,
        )
        return EmbeddingCodec(
            pca,
            Quantiser(state["code_edges"], state["code_centres"]),
            Quantiser(state["text_edges"], state["text_centres"]),
            Quantiser(state["match_edges"][None], state["match_centres"][None]),
        )


@torch.no_grad()
def fit_codec(
    embedding: Embedding, text: Tensor, *, components: int, buckets: int, match_buckets: int
) -> EmbeddingCodec:
    """Fit to pairs of a picture and a caption.

    Args:
        embedding: z_i of N training pictures.
        text: z_t of their captions, [N, D].
        components, buckets, match_buckets: how many of each, see ``AutoregressivePriorConfig``.

    Raises:
        ValueError: see ``fit_pca`` and ``fit_quantiser``.
    """
    pca = fit_pca(embedding, components=components)
    dot_products = (embedding.vectors * text.to(embedding.vectors)).sum(dim=1)
    return EmbeddingCodec(
        pca,
        fit_quantiser(pca.project(embedding), buckets),
        fit_quantiser(pca.project(Embedding(text, embedding.space)), buckets),
        fit_quantiser(rearrange(dot_products, "n -> n 1"), match_buckets, "quantile"),
    )
