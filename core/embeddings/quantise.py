"""Scalar quantisation: real numbers to the numbers of buckets and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from ..config import require_whole

Spacing = Literal["uniform", "quantile"]

# Share of the values beyond each of the limits between which uniform buckets lie.
_TAIL = 1e-3


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Buckets for each of C scalars, in increasing order of their values; the outermost are open.

    Attributes:
        edges: between neighbouring buckets, [C, V − 1], increasing along the last axis.
        centres: mean of the values in each bucket, [C, V]: what its number stands for.
    """

    edges: Tensor
    centres: Tensor

    def __post_init__(self) -> None:
        scalars, buckets = self.centres.shape
        if self.edges.shape != (scalars, buckets - 1):
            raise ValueError(
                f"quantiser: for centres {(scalars, buckets)} expected edges {(scalars, buckets - 1)}, found "
                f"{tuple(self.edges.shape)}"
            )

    @property
    def buckets(self) -> int:
        return self.centres.shape[1]

    def encode(self, values: Tensor) -> Tensor:
        """[B, C] → bucket numbers [B, C] int64; a value on an edge belongs to the lower bucket."""
        columns = rearrange(values.to(self.edges.device).float(), "b c -> c b").contiguous()
        return rearrange(torch.searchsorted(self.edges.float(), columns), "c b -> b c")

    def decode(self, codes: Tensor) -> Tensor:
        """Bucket numbers [B, J] of the first J ≤ C scalars → their centres [B, J], float32."""
        centres = self.centres[: codes.shape[1]].float()
        columns = rearrange(codes.to(centres.device), "b c -> c b")
        return rearrange(centres.gather(1, columns), "c b -> b c")


@torch.no_grad()
def fit_quantiser(values: Tensor, buckets: int, spacing: Spacing = "uniform") -> Quantiser:
    """Buckets for the scalars [N, C], fitted in float64.

    ``"uniform"`` buckets are equally wide between the 0.1% and the 99.9% quantile. ``"quantile"`` buckets
    hold equally many values. To be reconstructed, values want the first: their error is that of the width,
    and quantiles spend few, wide buckets on the tails, where PCA coefficients are large. To be drawn from, a
    scalar wants the second: the upper half of the buckets is the upper half of the distribution.

    Raises:
        ValueError: no values, values that are not finite, or fewer than 2 buckets.
    """
    if values.ndim != 2 or not values.numel() or not bool(values.isfinite().all()):
        raise ValueError(f"values: found {tuple(values.shape)}, expected finite numbers [count, scalars]")
    require_whole(buckets=buckets)
    if buckets < 2:
        raise ValueError(f"buckets: found {buckets}, expected at least 2")
    columns = rearrange(values.detach().to("cpu", torch.float64), "n c -> c n")
    inner = torch.linspace(0, 1, buckets + 1, dtype=torch.float64)[1:-1]  # [V − 1]
    if spacing == "quantile":
        edges = torch.stack([torch.quantile(column, inner) for column in columns])
    else:
        limits = torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)
        low, high = torch.stack([torch.quantile(column, limits) for column in columns], dim=1)[..., None]
        edges = low + (high - low) * inner  # [C, V − 1]
    numbers = torch.searchsorted(edges, columns.contiguous())  # [C, N]
    counts = torch.zeros(len(columns), buckets, dtype=torch.float64)
    counts.scatter_add_(1, numbers, torch.ones_like(columns))
    sums = torch.zeros_like(counts).scatter_add_(1, numbers, columns.contiguous())
    ends = [columns.amin(dim=1, keepdim=True), edges, columns.amax(dim=1, keepdim=True)]
    bounds = torch.cat(ends, dim=1).cummax(dim=1).values  # [C, V + 1]
    middles = (bounds[:, :-1] + bounds[:, 1:]) / 2  # for buckets that no value is in
    centres = torch.where(counts > 0, sums / counts.clamp(min=1), middles)
    return Quantiser(edges.float(), centres.float())
