"""The rows of steps.py as points: rows that differ in their seed alone are one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unclip.core.diffusion import guidance, sampling, spacing
from unclip.core.pipelines.options import OPTIMAL

Row = Mapping[str, Any]

PLAIN = "cfg"
DEFAULT = "default"
TRUE = "the true pictures"
SAMPLERS, GUIDANCES = list(sampling.SAMPLERS), list(guidance.GUIDANCES)
SPACINGS = [DEFAULT, *spacing.SPACINGS, OPTIMAL]

# Heading of a measure, and how it is written.
MEASURES = {
    "clip_score": ("CLIP score", "{:.3f}"),
    "cmmd": ("CMMD", "{:.3f}"),
    "r_precision": ("R-precision", "{:.0%}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "distance": ("distance", "{:.4f}"),
    "cpu_seconds": ("CPU seconds", "{:.0f}"),
}
COMPARED = ("clip_score", "cmmd", "precision", "recall")  # and said with their deviation over seeds

DPI = 110  # of the figures


@dataclass(frozen=True)
class Guided:
    """How a row was guided."""

    name: str
    scale: float
    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.name} {self.scale:g}{self._interval}"

    @property
    def kind(self) -> str:
        """All of it but the scale."""
        return self.name + self._interval

    @property
    def _interval(self) -> str:
        return "" if (self.start, self.end) == (0, 1) else f", {self.start:g} to {self.end:g}"


@dataclass(frozen=True, eq=False)
class Point:
    """Rows that differ in their seed alone."""

    sampler: str
    spacing: str
    guided: Guided
    steps: int
    rows: tuple[Row, ...]

    def place(self) -> tuple[int, int, int, str, float, int]:
        """Among others: as the core names samplers, spacings and guidances."""
        names = (
            SAMPLERS.index(self.sampler),
            SPACINGS.index(self.spacing),
            GUIDANCES.index(self.guided.name),
        )
        return (*names, self.guided.kind, self.guided.scale, self.steps)

    def values(self, measure: str) -> list[float]:
        return [row[measure] for row in self.rows if row[measure] is not None]

    def mean(self, measure: str) -> float:
        return statistics.fmean(self.values(measure))

    def noise(self, measure: str) -> float | None:
        """The standard deviation over seeds, where there are several."""
        values = self.values(measure)
        return statistics.stdev(values) if len(values) > 1 else None

    def written(self, measure: str) -> str:
        """As in a table; nothing where it was not measured."""
        if not self.values(measure):
            return ""
        _, form = MEASURES[measure]
        noise = self.noise(measure) if measure in COMPARED else None
        return form.format(self.mean(measure)) + ("" if noise is None else f" ± {form.format(noise)}")


def points_of(rows: Iterable[Row]) -> list[Point]:
    """One for all rows of a way, in their places."""
    found: dict[tuple[str, str, Guided, int], list[Row]] = {}
    for row in rows:
        guided = Guided(row["guidance"], row["scale"], row["start"], row["end"])
        found.setdefault((row["sampler"], row["spacing"], guided, row["steps"]), []).append(row)
    return sorted((Point(*way, tuple(same)) for way, same in found.items()), key=Point.place)


def usual_guidance(points: Sequence[Point]) -> Guided:
    """That under which most was measured."""
    ((usual, _),) = Counter(point.guided for point in points).most_common(1)
    return usual


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
