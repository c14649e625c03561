"""Shares with the certainty that their number of trials allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

NORMAL_95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Proportion:
    """``hits`` successes in ``total`` trials."""

    hits: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.total or self.total < 1:
            raise ValueError(f"proportion: found {self.hits} hits of {self.total}; expected 0 to the total")

    @classmethod
    def of(cls, hits: Tensor) -> Proportion:
        """[N] bool → how many are true."""
        return cls(int(hits.sum()), hits.numel())

    @property
    def value(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval."""
        return wilson_interval(self.hits, self.total)

    def to_json(self) -> dict[str, object]:
        return {"value": self.value, "interval95": list(self.interval), "hits": self.hits, "of": self.total}


def wilson_interval(hits: int, total: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion (E. B. Wilson, JASA 1927, 22:209).

    Stays within 0..1 and keeps its width where all or no trials succeed, unlike ±z·√(p(1−p)/n).

    Args:
        hits, total: successes and trials, 0 ≤ hits ≤ total, total ≥ 1.
        z: quantile of the normal distribution; the default gives 95%.
    """
    share = hits / total
    shrink = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # At 0 and at all hits the bound is exact; rounding would leave it a hair inside.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == total else centre + half
    return low, high
