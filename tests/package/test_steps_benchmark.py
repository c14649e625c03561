"""What the benchmark of quality against steps makes of its rows, and how it finds equal scales."""

from __future__ import annotations

import importlib
import re
import sys
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from ..helpers.sources import ROOT

REAL = {"clip_score": 0.8, "cmmd": 0.16, "r_precision": 1.0, "precision": 0.93, "recall": 0.95}
MODULES = ("equal_scale", "steps_points", "steps_grid", "steps_report")


@pytest.fixture(scope="module")
def bench():
    """The files beside the script, which find each other as if it had been started."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        found = [vars(importlib.import_module(name)) for name in MODULES]
        yield SimpleNamespace(**{name: each for module in found for name, each in module.items()})
    finally:
        sys.path.remove(folder)
        for name in MODULES:
            sys.modules.pop(name, None)


def row(sampler="ddim", spacing="default", guidance="cfg", scale=1.5, steps=8, seed=0, **others):
    measured = {"cmmd": 0.2, "clip_score": 0.79, "r_precision": 1.0, "precision": 0.9, "recall": 0.97}
    way = {"sampler": sampler, "spacing": spacing, "guidance": guidance, "scale": scale, "steps": steps}
    rest = {"seed": seed, "start": 0.0, "end": 1.0, "distance": None, "seconds": 9.0, "cpu_seconds": 8.0}
    return {**way, **rest, **measured, **others}


@pytest.fixture
def rows():
    return [
        *(row(sampler, steps=steps) for sampler in ("ddim", "unipc") for steps in (4, 8)),
        row(seed=1, cmmd=0.22),
        row(seed=2, cmmd=0.24),
        row("unipc", "karras", steps=4, cmmd=0.3),
        row("unipc", scale=3.0, clip_score=0.77),
        row("unipc", guidance="apg", scale=6.0, clip_score=0.7703),
        row("unipc", scale=2.0, clip_score=0.78, start=0.2, end=0.8),
        row("ddpm", "even", "pag", 2.0, 50),
    ]


def tables_in(text):
    """Of Markdown: each table as lists of cells."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in found]


def test_a_section_holds_what_differs_in_one_thing(bench, rows):
    found = {section.title: section for section in bench.sections(bench.points_of(rows))}
    assert {title: list(section.lines) for title, section in found.items()} == {
        "Samplers, default spacing, cfg 1.5": ["ddim", "unipc"],
        "Spacings of unipc, cfg 1.5": ["default", "karras"],
        "Guidances of unipc": ["cfg 1.5", "cfg 3", "cfg 2, 0.2 to 0.8", "apg 6"],
        "Others": ["ddpm, even, pag 2"],
    }
    assert found["Samplers, default spacing, cfg 1.5"].steps == [4, 8]
    assert found["Spacings of unipc, cfg 1.5"].steps == [4]  # where there is another to compare with


def test_many_steps_stand_on_the_line_of_their_sampler(bench, rows):
    found = {section.title: section for section in bench.sections(bench.points_of([*rows, row(steps=25)]))}
    samplers = found["Samplers, default spacing, cfg 1.5"]
    assert [point.steps for point in samplers.lines["ddim"]] == [4, 8, 25]
    assert "Others" in found and all(point.steps != 25 for point in found["Others"].points)
    assert found["Guidances of unipc"].steps == [8], "one number of steps: against the CLIP score"


def test_every_row_is_in_a_section_or_a_grid(bench, rows):
    rows += [
        row(sampler, spacing, "apg", 6.0) for sampler in ("ddim", "unipc") for spacing in ("even", "karras")
    ]
    points = bench.points_of(rows)
    in_sections = {point for section in bench.sections(points) for point in section.points}
    in_grids = {point for grid in bench.grids(points) for point in grid.cells.values()}
    assert in_sections - in_grids and in_grids - in_sections, "neither is all of them"
    assert in_sections | in_grids == set(points)


def test_seeds_are_one_point_with_its_noise(bench, rows):
    (point,) = (each for each in bench.points_of(rows) if len(each.rows) > 1)
    assert point.mean("cmmd") == pytest.approx(0.22) and point.noise("cmmd") == pytest.approx(0.02)
    assert point.written("cmmd") == "0.220 ± 0.020" and point.written("distance") == ""
    by_steps, *_ = tables_in(bench.tables(rows, REAL))
    assert by_steps == [
        ["sampler", "4 steps", "8 steps"],
        ["---", "---", "---"],
        ["ddim", "0.200", "0.220 ± 0.020"],
        ["unipc", "0.200", "0.200"],
        ["the true pictures", "0.160", "0.160"],
    ]


def test_a_measure_that_no_row_has_has_no_column(bench, rows):
    assert "distance" not in bench.tables(rows)
    with_distance = [*rows[1:], {**rows[0], "distance": 0.0123}]
    assert "| 0.0123 |" in bench.tables(with_distance)


def test_plain_guidance_of_an_equal_clip_score_stands_beside(bench, rows):
    *_, beside = tables_in(bench.tables(rows, REAL))
    assert [(line[1], line[6]) for line in beside[2:]] == [("apg 6", "cfg 3")]
    further = [{**each, "clip_score": 0.7712} if each["guidance"] == "apg" else each for each in rows]
    assert "equal CLIP score" not in bench.tables(further)
    other_seeds = [*rows, row("unipc", guidance="apg", scale=6.0, seed=1, clip_score=0.7703)]
    assert "equal CLIP score" not in bench.tables(other_seeds)


def test_grids_show_samplers_by_guidances_and_by_spacings(bench, rows):
    rows += [row("ddim", "karras", steps=4, cmmd=0.4), row("ddim", guidance="apg", scale=6.0, cmmd=0.5)]
    rows += [row(sampler, "karras", "apg", 6.0, cmmd=0.6) for sampler in ("ddim", "unipc")]
    found = {grid.title: tables_in(grid.table())[0] for grid in bench.grids(bench.points_of(rows))}
    assert list(found) == [
        "CMMD in 4 steps, cfg 1.5",
        "CMMD in 8 steps, default spacing",
        "CMMD in 8 steps, apg 6",
    ]
    spaced, guided, other = found.values()
    assert spaced[0] == ["sampler", "default", "karras"]
    assert spaced[2:] == [["ddim", "0.200", "0.400"], ["unipc", "0.200", "0.300"]]
    assert guided[0] == ["sampler", "cfg 1.5", "cfg 3", "cfg 2, 0.2 to 0.8", "apg 6"]
    assert guided[2][4] == "0.500" and guided[2][2].strip() == ""
    assert other[2:] == [["ddim", "0.500", "0.600"], ["unipc", "0.200", "0.600"]]
    assert all(title in bench.tables(rows) for title in found)


def test_the_heat_map_has_a_panel_for_each_grid_by_spacings(bench, rows, monkeypatch):
    figures = drawn(monkeypatch, "steps_grid")
    assert bench.heat_map(bench.points_of(rows[:5])) is None and not figures, "all have one spacing"
    rows += [row("ddim", "karras", steps=4, cmmd=3.0)]
    rows += [row(sampler, "karras", "apg", 6.0, cmmd=0.6) for sampler in ("ddim", "unipc")]
    bench.heat_map(bench.points_of(rows))
    (figure,) = figures
    few, apg = (axes for axes in figure.axes if axes.get_visible())
    assert [axes.get_title() for axes in (few, apg)] == ["CMMD in 4 steps, cfg 1.5", "CMMD in 8 steps, apg 6"]
    assert [text.get_text() for text in few.texts] == ["0.200", "3.000", "0.200", "0.300"]
    assert [text.get_text() for text in apg.texts] == ["0.600", "0.200", "0.600"], "nothing was not measured"
    (colours,) = few.images
    assert colours.norm.vmin == pytest.approx(0.2) and colours.norm.vmax == pytest.approx(0.8)


def drawn(monkeypatch, module):
    """The figures that a module draws from now on."""
    figures, draw = [], sys.modules[module].to_picture
    monkeypatch.setattr(sys.modules[module], "to_picture", lambda each: figures.append(each) or draw(each))
    return figures


def test_each_section_has_a_panel(bench, rows, monkeypatch):
    figures = drawn(monkeypatch, "steps_report")
    picture = bench.plot(rows, REAL)
    (figure,) = figures
    assert isinstance(figure, Figure) and picture.width == 1199
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [
        "Samplers, default spacing, cfg 1.5",
        "Spacings of unipc, cfg 1.5",
        "Guidances of unipc, 8 steps",
        "Others",
    ]
    for axes in panels.values():
        assert [line.get_ydata()[0] for line in axes.lines if line.get_label() == bench.TRUE] == [0.16]
    ddim, _ = panels["Samplers, default spacing, cfg 1.5"].containers
    assert ddim.get_label() == "ddim" and list(ddim.lines[0].get_xdata()) == [4, 8]
    assert list(ddim.lines[0].get_ydata()) == pytest.approx([0.2, 0.22])
    plain = panels["Guidances of unipc, 8 steps"].containers[0]
    assert plain.get_label() == "cfg" and list(plain.lines[0].get_xdata()) == [0.79, 0.77]


@pytest.mark.parametrize(
    ("score", "target", "expected"),
    [
        pytest.param(lambda scale: 0.7 + 0.01 * scale, 0.7225, 2.25, id="rises"),
        pytest.param(lambda scale: 0.8 - 0.001 * (scale - 1.3) ** 2, 0.79, 4.45, id="rises and falls"),
        pytest.param(lambda scale: 0.8 - 0.02 * (scale > 2.6), 0.79, 2.6, id="jumps"),
        pytest.param(lambda scale: 0.8 - 0.01 * scale, 0.79, 1.0, id="without guidance"),
        pytest.param(lambda scale: 0.7 + 0.001 * scale, 0.8, None, id="is never reached"),
    ],
)
def test_the_scale_of_an_equal_score_is_found(bench, score, target, expected):
    asked = []
    found = bench.equal_scale(target, lambda scale: asked.append(scale) or score(scale))
    assert found == (None if expected is None else pytest.approx(expected, abs=bench.FINEST))
    assert len(asked) == len(set(asked)) <= 15
    if found is not None:
        assert found in asked  # so that its row has been measured
