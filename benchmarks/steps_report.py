"""Tables and figure of the rows of steps.py.

A section shows what differs in one thing: the samplers, the spacings of a sampler, its guidances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from equal_scale import EQUAL
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullLocator
from PIL import Image
from steps_grid import gridded, grids
from steps_points import (
    COMPARED,
    DEFAULT,
    DPI,
    MEASURES,
    PLAIN,
    TRUE,
    Point,
    Row,
    markdown,
    points_of,
    usual_guidance,
)
from unclip.core.evaluation.quality.plot import to_picture

PANEL = (5.45, 3.6)  # inches
# Okabe and Ito's colours, which colour-blind people tell apart; with the shapes no two of 63 lines are alike.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = "os^DvPX*h"
REFERENCE = "#555555"


@dataclass(frozen=True)
class Section:
    """Lines of points that differ in one thing; ``varies`` says in which."""

    title: str
    varies: str
    lines: dict[str, list[Point]]

    @property
    def points(self) -> list[Point]:
        return [point for line in self.lines.values() for point in line]

    @property
    def steps(self) -> list[int]:
        return sorted({point.steps for point in self.points})


def sections(points: Sequence[Point]) -> list[Section]:
    """Points by what can be compared; together with the grids by spacings they hold all of them.

    The guidance under which most was measured is that of the samplers and the spacings.
    """
    usual = usual_guidance(points)
    usually = [point for point in points if point.guided == usual]
    samplers = dict.fromkeys(point.sampler for point in usually)
    found = [
        _section(
            f"Samplers, {DEFAULT} spacing, {usual}",
            "sampler",
            lambda point: point.sampler,
            [point for point in usually if point.spacing == DEFAULT],
            whole_lines=True,
        )
    ]
    for sampler in samplers:
        own = [point for point in usually if point.sampler == sampler]
        found.append(_section(f"Spacings of {sampler}, {usual}", "spacing", lambda point: point.spacing, own))
    for sampler in dict.fromkeys(point.sampler for point in points):
        own = [point for point in points if (point.sampler, point.spacing) == (sampler, DEFAULT)]
        found.append(_section(f"Guidances of {sampler}", "guidance", lambda point: str(point.guided), own))
    shown = {point for section in found for point in section.points} | gridded(points)
    others = [point for point in points if point not in shown]
    if others:
        names = "sampler, spacing, guidance"
        found.append(
            _lines("Others", names, lambda each: f"{each.sampler}, {each.spacing}, {each.guided}", others)
        )
    return [section for section in found if section.lines]


def _section(
    title: str,
    varies: str,
    name: Callable[[Point], str],
    points: Sequence[Point],
    *,
    whole_lines: bool = False,
) -> Section:
    """Of the points that stand beside others of the same number of steps.

    Args:
        whole_lines: with the others of their lines, such as the many steps that few ones are compared with.
    """
    names = {(name(point), point.steps) for point in points}
    beside = Counter(steps for _, steps in names)
    compared = [point for point in points if beside[point.steps] > 1]
    if whole_lines:
        shown = {name(point) for point in compared}
        compared = [point for point in points if name(point) in shown]
    return _lines(title, varies, name, compared)


def _lines(title: str, varies: str, name: Callable[[Point], str], points: Sequence[Point]) -> Section:
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(name(point), []).append(point)
    return Section(
        title, varies, {name: sorted(line, key=lambda point: point.steps) for name, line in lines.items()}
    )


def tables(rows: Sequence[Row], real: Mapping[str, float] | None = None) -> str:
    """All sections and grids as Markdown, and what has an equal CLIP score side by side.

    Args:
        real: the measures of the true pictures.
    """
    points = points_of(rows)
    parts = []
    for section in sections(points):
        whole = _measures(section, real)
        if len(section.steps) > 1:
            folded = f"<details><summary>All measures</summary>\n\n{whole}\n</details>\n"
            parts += [f"{section.title}: CMMD by steps.\n", _by_steps(section, real), folded]
        else:
            parts += [f"{section.title}.\n", whole]
    parts += [f"{grid.title}.\n\n{grid.table()}" for grid in grids(points)]
    if pairs := equals(points):
        parts += [f"Beside plain guidance of an equal CLIP score (to {EQUAL:g}).\n", _side_by_side(pairs)]
    return "\n".join(parts)


def _by_steps(section: Section, real: Mapping[str, float] | None) -> str:
    """CMMD, a column for each number of steps."""
    body = []
    for name, line in section.lines.items():
        cells = {point.steps: point.written("cmmd") for point in line}
        body.append([name, *(cells.get(steps, "") for steps in section.steps)])
    if real:
        form = MEASURES["cmmd"][1]
        body.append([TRUE, *[form.format(real["cmmd"])] * len(section.steps)])
    return markdown([section.varies, *(f"{steps} steps" for steps in section.steps)], body)


def _measures(section: Section, real: Mapping[str, float] | None) -> str:
    """Every measure that there is of a point, a row for each of them."""
    shown = [measure for measure in MEASURES if any(point.values(measure) for point in section.points)]
    body = [
        [name, str(point.steps), *(point.written(measure) for measure in shown)]
        for name, line in section.lines.items()
        for point in line
    ]
    if real:
        true = [MEASURES[measure][1].format(real[measure]) if measure in real else "" for measure in shown]
        body.append([TRUE, "", *true])
    return markdown([section.varies, "steps", *(MEASURES[measure][0] for measure in shown)], body)


def equals(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Points of other guidances, each with the one of plain guidance that has its CLIP score.

    Both have the same sampler, spacing, steps and seeds. Those that have no such partner are left out.
    """
    found = []
    for point in points:
        if point.guided.kind == PLAIN:
            continue
        partners = [other for other in points if is_beside(other, point)]
        apart = {abs(other.mean("clip_score") - point.mean("clip_score")): other for other in partners}
        if apart and min(apart) <= EQUAL:
            found.append((point, apart[min(apart)]))
    return found


def is_beside(plain: Point, point: Point) -> bool:
    """Whether two points differ in their guidance alone, the first being plain."""
    ways = [
        (each.sampler, each.spacing, each.steps, {row["seed"] for row in each.rows})
        for each in (plain, point)
    ]
    return plain.guided.kind == PLAIN and ways[0] == ways[1]


def _side_by_side(pairs: Sequence[tuple[Point, Point]]) -> str:
    headings = [MEASURES[measure][0] for measure in COMPARED]
    body = []
    for pair in pairs:
        cells = [[str(each.guided), *(each.written(measure) for measure in COMPARED)] for each in pair]
        body.append([f"{pair[0].sampler}, {pair[0].steps}", *cells[0], *cells[1]])
    return markdown(["sampler, steps", "guidance", *headings, "plain", *headings], body)


def plot(rows: Sequence[Row], real: Mapping[str, float] | None = None) -> Image.Image:
    """A panel for each section: CMMD against steps, or of guidances at one number of them against CLIP score.

    Bars are the standard deviation over seeds; the dashed line is what the true pictures have.
    """
    shown = sections(points_of(rows))
    down, across = -(-len(shown) // 2), min(len(shown), 2)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, section in zip(panels, shown, strict=False):
        if section.varies == "guidance" and len(section.steps) == 1:
            _against_score(axes, section)
        else:
            _against_steps(axes, section)
        if real:
            axes.axhline(real["cmmd"], color=REFERENCE, linestyle="--", linewidth=1, label=TRUE)
        axes.set(ylabel="CMMD (less is better)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    _share_height([axes for axes, section in zip(panels, shown, strict=False) if section.varies == "spacing"])
    return to_picture(figure)


def _share_height(panels: Sequence[Axes]) -> None:
    """Give panels one range of CMMD, that what is large in one is large in all."""
    if panels:
        lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
        for axes in panels:
            axes.set_ylim(min(lows), max(highs))


def _against_steps(axes: Axes, section: Section) -> None:
    for number, (name, line) in enumerate(section.lines.items()):
        _line(axes, number, name, [float(point.steps) for point in line], line)
    axes.set(title=section.title, xlabel="steps", xscale="log", yscale="log")
    axes.set_xticks(section.steps, [str(steps) for steps in section.steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%.2f"))
    axes.yaxis.set_minor_formatter(FormatStrFormatter("%.2f"))


def _against_score(axes: Axes, section: Section) -> None:
    """Each kind of guidance as a line from scale to scale, which are written beside its points."""
    kinds: dict[str, list[Point]] = {}
    for point in section.points:
        kinds.setdefault(point.guided.kind, []).append(point)
    for number, (kind, line) in enumerate(kinds.items()):
        line.sort(key=lambda point: point.guided.scale)
        scores = [point.mean("clip_score") for point in line]
        _line(axes, number, kind, scores, line)
        for score, point in zip(scores, line, strict=True):
            place = (score, point.mean("cmmd"))
            axes.annotate(f"{point.guided.scale:g}", place, (4, 4), textcoords="offset points", fontsize=8)
    (steps,) = section.steps
    axes.set(title=f"{section.title}, {steps} steps", xlabel="CLIP score (more fits the caption better)")


def _line(axes: Axes, number: int, name: str, across: Sequence[float], line: Sequence[Point]) -> None:
    axes.errorbar(
        across,
        [point.mean("cmmd") for point in line],
        [point.noise("cmmd") or 0.0 for point in line],
        label=name,
        color=COLOURS[number % len(COLOURS)],
        marker=SHAPES[number % len(SHAPES)],
        markersize=5,
        linewidth=1.3,
        capsize=3,
    )
