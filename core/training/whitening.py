"""Squared error in which every principal component of the embeddings counts alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings.pca import fit_pca
from ..embeddings.space import Embedding


class WhitenedError:
    """Σ_k e_k² / (λ_k + ridge) over D: e_k the error along principal component k, λ_k its variance.

    CLIP puts most of the variance of pictograms into a dozen components, which tell colours and kinds; what
    tells one shape from another lies in fifty more of a hundredth of it. A plain squared error leaves those
    to the last, and a decoder that is sensitive to them draws blots.
    """

    def __init__(self, embedding: Embedding, ridge: float) -> None:
        """Args:
        embedding: [N, D], of which the components are taken; N of at least a few times D.
        ridge: in units of the variance; what lies far below it is noise and counts less.
        """
        if not ridge > 0:
            raise ValueError(f"whitening is {ridge}, expected a positive variance (0.01 is a good value)")
        pca = fit_pca(embedding, components=min(len(embedding) - 1, embedding.space.dim))
        self._scaled = pca.components.T / (pca.variances + ridge).sqrt()  # [D, K]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """[B, D] and [B, D] → [B] float32; about 1 for an output that is always the mean."""
        with torch.autocast(output.device.type, enabled=False):
            self._scaled = self._scaled.to(output.device)  # once: a copy in each step would wait for it
            errors = (output.float() - target.float()) @ self._scaled  # [B, K]
        return errors.square().mean(dim=1)
