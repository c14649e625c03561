"""Distances between sets of pictures, in the space of CLIP embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
NEIGHBOURS = 3


def cmmd(first: Tensor, second: Tensor) -> float:
    """CLIP maximum mean discrepancy: 1000·MMD² with σ = 10 (CMMD, 2401.09603, section 4).

    Biased, so 0 only for equal sets: two samples of one distribution stay apart by about 1/N of the kernel's
    spread. Compare it with the same measure between two sets of real pictures.

    Args:
        first, second: [N, D] and [M, D] CLIP embeddings, of any length.
    """
    return CMMD_SCALE * squared_mmd(unit(first), unit(second), CMMD_SIGMA)


def squared_mmd(first: Tensor, second: Tensor, sigma: float) -> float:
    """Biased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, equation 5).

    MMD² = mean k(x, x') + mean k(y, y') − 2·mean k(x, y), pairs of an element with itself included, with the
    Gaussian kernel k(a, b) = exp(−‖a − b‖² / 2σ²).

    Args:
        first, second: [N, D] and [M, D].
    """
    first, second = first.double(), second.double()

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-_distances(a, b).square() / (2 * sigma**2)).exp().mean()

    value = mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second)
    return value.item()


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares, 0..1: of generated pictures that look real, and of real ones that could have been generated."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, 1904.06991, equations 1 and 2).

    The manifold of a set is the union of the balls around its points that reach to their k-th nearest
    neighbour in the set. Both depend on the sizes of the sets, so compare only equal ones. One outlier among
    the real pictures has a ball that may hold anything, so high precision says little beside a high CMMD.

    Args:
        real, generated: [N, D] and [M, D] embeddings, compared as they are.
        neighbours: k, at least 1 and less than the size of either set.

    Raises:
        ValueError: sets too small for k.
    """
    smallest = min(len(real), len(generated))
    if not 1 <= neighbours < smallest:
        raise ValueError(f"neighbours is {neighbours}; expected 1 to {smallest - 1} for sets of {smallest}")
    real, generated = real.double(), generated.double()
    across = _distances(real, generated)  # [N, M]
    return PrecisionRecall(
        precision=_covered(across, _radii(real, neighbours)),
        recall=_covered(across.T, _radii(generated, neighbours)),
    )


def unit(vectors: Tensor) -> Tensor:
    """[N, D] scaled to unit length, float64."""
    return F.normalize(vectors.double(), dim=-1)


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """[N, D] → [N] distance of each point to its k-th nearest neighbour, itself not counted."""
    # The smallest distance of a row is the point's own, 0.
    return _distances(points, points).kthvalue(neighbours + 1, dim=1).values


def _covered(distances: Tensor, radii: Tensor) -> float:
    """Share of the columns that lie within the radius of any row."""
    return (distances <= radii[:, None]).any(dim=0).double().mean().item()


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """[N, D], [M, D] → [N, M] Euclidean; by differences, so that a point is at distance 0 from itself."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
