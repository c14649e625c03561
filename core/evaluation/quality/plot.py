"""Curves of an evaluation: measures against guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

MEASURES = {
    "r_precision_clip": "R-precision, CLIP",
    "r_precision_pixels": "R-precision, pixels",
    "background": "background named right",
    "cmmd": "CMMD",
}
# Okabe and Ito's colours, which colour-blind people tell apart; and shapes, for print.
LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
REFERENCE = "#555555"
DPI = 110


def plot_guidance(results: Mapping[str, Any], varied: Literal["decoder", "prior"]) -> Image.Image | None:
    """Measures against the guidance scale of the decoder or of the prior.

    A row of panels for each split; in each a line for every prior, over a band that is the 95% interval of
    shares, and the level of the real pictures, dashed.

    Args:
        results: of ``evaluate``, for a config with guidance scales.

    Returns:
        The picture; None where that scale was not varied.
    """
    sweeps = {split: measured["sweeps"] for split, measured in results.items() if "sweeps" in measured}
    if not any(sweep[varied] for sweep in sweeps.values()):
        return None
    figure = Figure(figsize=(3.6 * len(MEASURES), 0.7 + 3 * len(sweeps)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(sweeps), len(MEASURES), squeeze=False, sharex=True)
    for row, (split, sweep) in zip(panels, sweeps.items(), strict=True):
        for axes, measure in zip(row, MEASURES, strict=True):
            _panel(axes, sweep[varied], sweep["real"], measure, list(results[split]["priors"]))
        row[0].set_ylabel(f"{split.replace('_', '-')} pairs\n({sweep['prompts']} captions)")
    for axes, title in zip(panels[0], MEASURES.values(), strict=True):
        axes.set_title(title)
    for axes in panels[-1]:
        axes.set_xlabel(f"guidance scale of the {varied}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return to_picture(figure)


def to_picture(figure: Figure) -> Image.Image:
    """A figure as pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _panel(
    axes: Axes,
    lines: Mapping[str, list[dict[str, Any]]],
    real: Mapping[str, Any],
    measure: str,
    priors: list[str],
) -> None:
    """One measure; ``priors`` are all of the evaluation, so that each keeps its colour in every figure."""
    for prior, points in lines.items():
        colour, marker = LINES[priors.index(prior) % len(LINES)]
        scales = [point["guidance_scale"] for point in points]
        found = [point[measure] for point in points]
        label = "no prior" if prior == "none" else f"{prior} prior"
        axes.plot(scales, [_value(each) for each in found], color=colour, marker=marker, label=label)
        if isinstance(found[0], Mapping):
            low, high = zip(*(each["interval95"] for each in found), strict=True)
            axes.fill_between(scales, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(_value(real[measure]), color=REFERENCE, linestyle="--", label="real pictures")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if measure == "cmmd":
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter("{x:.0%}")


def _value(found: Mapping[str, Any] | float) -> float:
    return found["value"] if isinstance(found, Mapping) else found
