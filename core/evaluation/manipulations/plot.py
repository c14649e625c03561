"""Curves of what was measured of manipulations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..quality.plot import DPI, LINES, REFERENCE, to_picture
from .measures import AIM_PSNR

EIGHT_BITS = 10 * np.log10(12 * 255**2)
"""PSNR in dB of pictures that are merely rounded to 8 bits: an error of 1/12 of a squared step."""

NEGLIGIBLE = 1e-6
"""Share of the variance below which errors are float32's, not those of components that are left out."""


def plot_inversion(found: Mapping[str, Any]) -> Image.Image:
    """PSNR of round trips against the number of steps.

    A line for each number of refinements, over a band from the worst picture to the best.

    Args:
        found: of ``measure_inversion``.
    """
    figure, axes = _axes("steps of the inversion, and of decoding", "PSNR of the round trip, dB")
    for curve, (colour, marker) in zip(found["curves"], LINES, strict=False):
        points = curve["points"]
        steps = [point["steps"] for point in points]
        count = curve["refinements"]
        label = f"{count} refinements a step" if count else "plain"
        axes.plot(steps, [point["psnr"] for point in points], color=colour, marker=marker, label=label)
        low, high = ([point[end] for point in points] for end in ("worst", "best"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    for level, name in ((AIM_PSNR, "aim"), (EIGHT_BITS, "rounding to 8 bits")):
        axes.axhline(level, color=REFERENCE, linestyle="--", linewidth=1)
        axes.annotate(
            name, (1, level), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", color=REFERENCE
        )
    axes.set_xscale("log")
    ticks = sorted({point["steps"] for curve in found["curves"] for point in curve["points"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"{found['pictures']} real pictures → x_T → pictures")
    axes.legend(frameon=False, loc="upper left")
    return to_picture(figure)


def plot_text_diff(found: Mapping[str, Any]) -> Image.Image:
    """Mean zero-shot probabilities against θ, with bands of one standard error; by the prior in dashes.

    Args:
        found: of ``measure_text_diff``.
    """
    figure, axes = _axes("θ, the share of the angle to the text difference", "zero-shot probability")
    labels = {
        "embedding": "target, turned embedding",
        "pictures": "target, decoded picture",
        "left": "own caption, decoded picture",
    }
    by_prior = found.get("by_prior")
    for (name, label), (colour, marker) in zip(labels.items(), LINES, strict=False):
        mean, error = (np.array(found[name][key]) for key in ("mean", "error"))
        axes.plot(found["theta"], mean, color=colour, marker=marker, label=label)
        axes.fill_between(found["theta"], mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
        if by_prior is not None:
            mean = by_prior[name]["mean"]
            axes.plot(by_prior["theta"], mean, color=colour, linestyle="--", label=f"{label}, by the prior")
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title(f"{found['pairs']} pictures turned to another caption, of {found['concepts']}")
    axes.legend(frameon=False)
    return to_picture(figure)


def plot_pca(found: Mapping[str, Any]) -> Image.Image:
    """Reconstruction error against the number of components, logarithmic.

    Args:
        found: of ``measure_pca``.
    """
    figure, axes = _axes("principal components", "squared error, share of the variance")
    axes.plot(found["components"], found["error"], color=LINES[0][0])
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(NEGLIGIBLE, min(found["error"])))
    enough = found["within_1_percent"]
    if enough is not None:
        axes.axhline(0.01, color=REFERENCE, linestyle="--", linewidth=1)
        axes.plot([enough], [found["error"][enough]], color=LINES[1][0], marker="o")
        axes.annotate(f"1%: {enough} components", (enough, 0.01), (6, 6), textcoords="offset points")
    axes.set_title(f"{found['measured']} pictures, components of {found['fitted']} others")
    return to_picture(figure)


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes
