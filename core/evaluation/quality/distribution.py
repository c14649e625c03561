"""Distances between sets of pictures, in the space of CLIP embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...precision import double

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
NEIGHBOURS = 3
ROWS_AT_ONCE = 2048


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

    The memory that it takes grows with N and M, not with their product: 30,000 pictures are not too many.

    Args:
        first, second: [N, D] and [M, D].
    """
    first, second = double(first), double(second)

    def mean_kernel(a: Tensor, b: Tensor) -> float:
        ends = b.square().sum(dim=1)  # [M]
        total = 0.0
        for rows in a.split(ROWS_AT_ONCE):
            # ‖a − b‖² = ‖a‖² + ‖b‖² − 2a·b, whose rounding in float64 the kernel does not see.
            squared = rows.square().sum(dim=1, keepdim=True) + ends - 2 * rows @ b.T
            total += (-squared / (2 * sigma**2)).exp().sum().item()
        return total / (len(a) * len(b))

    return mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the normal distributions with the means and covariances of two sets.

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), with unbiased covariances: the Fréchet inception distance
    where the sets are Inception's features (Heusel et al. 2017, 1706.08500, equation 6). Small sets are
    further apart than large ones of the same pictures: compare equal numbers.

    Args:
        first, second: [N, D] and [M, D], at least two of each.

    Raises:
        ValueError: fewer.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"found sets of {len(first)} and {len(second)}; a covariance takes two at least")
    first, second = double(first), double(second)
    apart = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    one, other = first.T.cov(), second.T.cov()
    # (Σ₁Σ₂)^½ has the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric, so that nothing turns complex.
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return (apart + one.trace() + other.trace() - 2 * shared).item()


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
    real, generated = double(real), double(generated)
    across = _distances(real, generated)  # [N, M]
    return PrecisionRecall(
        precision=_covered(across, _radii(real, neighbours)),
        recall=_covered(across.T, _radii(generated, neighbours)),
    )


def unit(vectors: Tensor) -> Tensor:
    """[N, D] scaled to unit length, float64."""
    return F.normalize(double(vectors), dim=-1)


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
