"""Every sampler with every spacing, guidance by guidance: the tables and the picture of them.

A grid holds the CMMD of points of one number of steps, a row for each sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image
from steps_points import DEFAULT, DPI, Point, markdown
from unclip.core.evaluation.quality.plot import to_picture

ACROSS = 2
CELL = (0.72, 0.3)  # inches
MARGINS = (1.5, 0.75)  # inches, for the names
COLOURS = "cividis"
WORST = 4.0  # times the best: from here on a cell has the last colour
LIGHT = 0.5  # of the colours, from which on black is read better than white


@dataclass(frozen=True)
class Grid:
    """Points of one number of steps by their sampler and something else; each has at least two names."""

    title: str
    samplers: list[str]
    columns: list[str]
    cells: Mapping[tuple[str, str], Point]

    def table(self) -> str:
        body = [
            [sampler, *(self._written(sampler, column) for column in self.columns)]
            for sampler in self.samplers
        ]
        return markdown(["sampler", *self.columns], body)

    def _written(self, sampler: str, column: str) -> str:
        point = self.cells.get((sampler, column))
        return "" if point is None else point.written("cmmd")


def grids(points: Sequence[Point]) -> list[Grid]:
    """Samplers by guidances in the default spacing, and by spacings for each guidance, by number of steps."""
    found = []
    for steps in sorted({point.steps for point in points}):
        same = [point for point in points if point.steps == steps]
        usually_spaced = [point for point in same if point.spacing == DEFAULT]
        title = f"CMMD in {steps} steps, {DEFAULT} spacing"
        found += _grid(title, usually_spaced, lambda point: str(point.guided))
        found += _by_spacings(same)
    return found


def _by_spacings(points: Sequence[Point]) -> list[Grid]:
    """A grid for each guidance of points of one number of steps."""
    found = []
    for guided in dict.fromkeys(point.guided for point in points):
        own = [point for point in points if point.guided == guided]
        found += _grid(f"CMMD in {own[0].steps} steps, {guided}", own, lambda point: point.spacing)
    return found


def _grid(title: str, points: Sequence[Point], column: Callable[[Point], str]) -> list[Grid]:
    """Nothing where there is but one row or column."""
    samplers = list(dict.fromkeys(point.sampler for point in points))
    columns = list(dict.fromkeys(map(column, sorted(points, key=lambda point: point.place()[1:]))))
    if min(len(samplers), len(columns)) < 2:
        return []
    return [Grid(title, samplers, columns, {(point.sampler, column(point)): point for point in points})]


def gridded(points: Sequence[Point]) -> set[Point]:
    """Those that stand in a grid of samplers by spacings."""
    return {point for grid in _spaced(points) for point in grid.cells.values()}


def _spaced(points: Sequence[Point]) -> list[Grid]:
    counts = sorted({point.steps for point in points})
    return [
        grid for steps in counts for grid in _by_spacings([point for point in points if point.steps == steps])
    ]


def heat_map(points: Sequence[Point]) -> Image.Image | None:
    """A panel for each guidance and number of steps in which samplers have several spacings; None without.

    All panels share their colours, from the best CMMD to ``WORST`` times as much.
    """
    shown = _spaced(points)
    if not shown:
        return None
    best = min(point.mean("cmmd") for grid in shown for point in grid.cells.values())
    scale = LogNorm(best, WORST * best, clip=True)
    down, across = -(-len(shown) // ACROSS), min(len(shown), ACROSS)
    columns = max(len(grid.columns) for grid in shown)
    rows = max(len(grid.samplers) for grid in shown)
    size = (MARGINS[0] + CELL[0] * columns, MARGINS[1] + CELL[1] * rows)
    figure = Figure((size[0] * across, size[1] * down), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, grid in zip(panels, shown, strict=False):
        _draw(axes, grid, scale)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return to_picture(figure)


def _draw(axes: Axes, grid: Grid, scale: LogNorm) -> None:
    values = [[_cmmd(grid, sampler, column) for column in grid.columns] for sampler in grid.samplers]
    axes.imshow(values, cmap=f"{COLOURS}_r", norm=scale, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "black" if scale(value) < LIGHT else "white"
            if value == value:  # not NaN, which stands for what was not measured
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(grid.title, fontsize=10)
    axes.set_xticks(range(len(grid.columns)), grid.columns, fontsize=8)
    axes.set_yticks(range(len(grid.samplers)), grid.samplers, fontsize=8)
    axes.tick_params(length=0)


def _cmmd(grid: Grid, sampler: str, column: str) -> float:
    point = grid.cells.get((sampler, column))
    return float("nan") if point is None else point.mean("cmmd")
