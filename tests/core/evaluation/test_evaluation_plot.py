"""Curves of measures against guidance scales."""

from __future__ import annotations

import sys

import numpy as np
from unclip.core.evaluation.quality import plot
from unclip.core.evaluation.quality.plot import MEASURES, plot_guidance
from unclip.core.evaluation.statistics import Proportion

PRIORS = ("diffusion", "autoregressive", "none")
SCALES = (1.0, 1.5, 4.0)


def measures(value):
    share = Proportion(round(20 * value), 20).to_json()
    return {name: value if name == "cmmd" else share for name in MEASURES}


def split(level=0.5):
    lines = {
        prior: [{"guidance_scale": scale, **measures(level + 0.1 * index)} for scale in SCALES]
        for index, prior in enumerate(PRIORS)
    }
    return {
        "priors": {prior: {} for prior in PRIORS},
        "sweeps": {
            "prompts": 20,
            "real": measures(0.9),
            "decoder": lines,
            "prior": {prior: lines[prior] for prior in PRIORS[:2]},
        },
    }


def panels(monkeypatch, results, varied):
    """What each panel shows, by row and measure: line labels → values."""
    shown = []
    real = plot._panel

    def panel(axes, *rest):
        real(axes, *rest)
        shown.append({line.get_label(): (line.get_xdata(), line.get_ydata(), line) for line in axes.lines})

    monkeypatch.setattr(plot, "_panel", panel)
    return plot_guidance(results, varied), shown


def test_each_split_has_a_row_and_each_measure_a_panel(monkeypatch):
    results = {"trained": split(), "held_out": split(0.2)}
    picture, shown = panels(monkeypatch, results, "decoder")
    assert len(shown) == 2 * len(MEASURES)
    names = ["diffusion prior", "autoregressive prior", "no prior", "real pictures"]
    assert all(list(panel) == names for panel in shown)
    x, y, _ = shown[0]["autoregressive prior"]
    assert list(x) == list(SCALES) and np.allclose(y, 0.6)
    assert np.allclose(shown[4]["autoregressive prior"][1], 0.3)
    assert np.allclose(shown[3]["real pictures"][1], 0.9)
    assert picture.mode == "RGB" and picture.width > 1000
    single = plot_guidance({"trained": split()}, "decoder")
    assert single.width == picture.width and single.height < picture.height


def test_a_prior_keeps_its_colour_where_another_has_no_line(monkeypatch):
    results = {"trained": split()}
    del results["trained"]["sweeps"]["prior"]["diffusion"]
    _, shown = panels(monkeypatch, results, "prior")
    assert list(shown[0]) == ["autoregressive prior", "real pictures"]
    _, both = panels(monkeypatch, results, "decoder")
    colours = [line.get_color() for _, _, line in both[0].values()]
    assert shown[0]["autoregressive prior"][2].get_color() == colours[1]
    assert len(set(colours)) == 4


def test_nothing_is_drawn_where_nothing_varied():
    results = split()
    results["sweeps"]["prior"] = {}
    assert plot_guidance({"trained": results}, "prior") is None
    assert plot_guidance({"trained": {"priors": {}}}, "decoder") is None


def test_the_same_results_give_the_same_pixels_and_no_pyplot():
    before = "matplotlib.pyplot" in sys.modules
    first, second = (plot_guidance({"trained": split()}, "decoder") for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert ("matplotlib.pyplot" in sys.modules) == before
