"""Principal components of CLIP image embeddings.

unCLIP (2204.06125) uses them twice: the autoregressive prior writes z_i as its leading coefficients (section
2.2), and figure 7 decodes z_i from ever more of them to show what a CLIP space sees first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import require_whole
from ..memory import InMemory
from .space import Embedding, EmbeddingSpace, require_same_space

EXPLAINED_VARIANCE = 0.99


@dataclass(frozen=True, eq=False)
class PCA(InMemory):
    """The leading principal components of the image embeddings of one CLIP space, in its norm convention.

    Attributes:
        mean: of the embeddings, [D].
        components: [K, D] orthonormal rows, by decreasing variance; the largest entry of each is positive.
        variances: of the embeddings along each component, [K].
        total_variance: of the embeddings in all D dimensions, [].
        space: the CLIP space.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    total_variance: Tensor
    space: EmbeddingSpace

    def __len__(self) -> int:
        return self.components.shape[0]

    @property
    def explained_variance(self) -> Tensor:
        """Share of the total variance that each component explains, [K]. One minus the sum of the first k is
        the mean squared error of reconstructions from k components over the total variance."""
        return self.variances.float() / self.total_variance.float()  # sums of half precision go in leaps

    def project(self, embedding: Embedding) -> Tensor:
        """Embeddings [B, D] → their coefficients [B, K], float32.

        Raises:
            ValueError: embeddings of another CLIP space, or unit vectors for components of raw ones, whose
                length no statistics tell.
        """
        require_same_space("embedding", embedding.space, self.space)
        mean, components = self.mean.float(), self.components.float()
        return (embedding.in_norm_of(self.space).to(mean) - mean) @ components.T

    def reconstruct(self, coefficients: Tensor, k: int | None = None) -> Embedding:
        """Coefficients [B, J ≤ K] → embeddings [B, D] float32 from the first k of them; None for all J.

        What further components would add is left at the mean. Vectors of a ``unit`` space come out slightly
        shorter than 1, by what is left out.

        Raises:
            ValueError: more coefficients than components, or k outside 0..J.
        """
        if coefficients.ndim != 2 or coefficients.shape[1] > len(self):
            raise ValueError(
                f"coefficients: found shape {tuple(coefficients.shape)}, expected [batch, up to {len(self)}]"
            )
        k = coefficients.shape[1] if k is None else k
        require_whole(k=k)
        if not 0 <= k <= coefficients.shape[1]:
            raise ValueError(f"k: found {k}, expected 0 to {coefficients.shape[1]} coefficients")
        mean, components = self.mean.float(), self.components.float()
        return Embedding(mean + coefficients[:, :k].to(mean) @ components[:k], self.space)

    def to(self, device: torch.device | str) -> PCA:
        tensors = ("mean", "components", "variances", "total_variance")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


@torch.no_grad()
def fit_pca(
    embedding: Embedding, *, components: int | None = None, explained_variance: float = EXPLAINED_VARIANCE
) -> PCA:
    """Principal components of N image embeddings, by the eigenvectors of their covariance in float64.

    Args:
        components: how many to keep; None for as few as explain ``explained_variance``.
        explained_variance: share of the total variance, above 0 to 1. 0.99 leaves a reconstruction error of
            1%, the paper's (319 components of 1024).

    Raises:
        ValueError: fewer than 2 embeddings, values that are not finite, embeddings that are all the same, a
            share or a number of components out of range.
    """
    count, dim = embedding.vectors.shape
    if count < 2:
        raise ValueError(f"embedding: found {count}, expected at least 2 to find principal components of")
    if not 0 < explained_variance <= 1:
        raise ValueError(f"explained_variance: found {explained_variance}, expected above 0 to 1")
    vectors = embedding.vectors.detach().to("cpu", torch.float64)
    mean = vectors.mean(dim=0)
    centred = vectors - mean
    variances, basis = torch.linalg.eigh(centred.T @ centred / count)
    variances, basis = variances.flip(0).clamp(min=0), basis.flip(1).T  # rows, by decreasing variance
    total = variances.sum()
    if not total > 0:
        raise ValueError(f"embedding: found {count} equal embeddings, expected different ones")
    available = min(count - 1, dim)
    if components is None:
        # A share of 1 is reached by the sum of all, up to rounding.
        enough = variances.cumsum(0) / total >= explained_variance - 1e-12
        components = min(int(enough.int().argmax()) + 1, available)
    require_whole(components=components)
    if not 1 <= components <= available:
        raise ValueError(
            f"components: found {components}, expected 1 to {available}, as many as {count} embeddings of "
            f"{dim} dimensions have"
        )
    basis = basis[:components]
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))  # [K, 1]
    return PCA(
        mean.float(),
        (basis * largest.sign()).float(),
        variances[:components].float(),
        total.float(),
        embedding.space,
    )
