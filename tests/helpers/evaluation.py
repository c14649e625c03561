"""Made-up pictograms, and settings that evaluate a tiny bundle on them in no time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from unclip.core.data.pictograms import Pictogram, write_shards
from unclip.core.data.settings import DataConfig
from unclip.core.evaluation.quality.config import EvaluationConfig
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.prior import PriorOptions

STYLES = ("noto", "twemoji")
FAST = {"prior": PriorOptions(steps=2, guidance_scale=2.0, candidates=1), "decoder": DecodeOptions(steps=2)}


def squares() -> list[Pictogram]:
    """160 pictograms, each a square of its own colour and place."""
    places = list(itertools.product(range(8), range(8)))
    return [
        _square(
            f"square {index}", style, (index * 37 % 256, index * 101 % 256, 130 * number), places[index % 64]
        )
        for number, style in enumerate(STYLES)
        for index in range(80)
    ]


def _square(concept: str, style: str, colour: tuple[int, int, int], corner: tuple[int, int]) -> Pictogram:
    x, y = corner
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
        f'<rect x="{2 + x}" y="{2 + y}" width="5" height="5" fill="rgb{colour}"/></svg>'
    )
    return Pictogram(f"{style}/{concept}", concept, style, "objects", ("thing", "stuff"), svg)


def squares_in_groups() -> list[Pictogram]:
    """:func:`squares`, half of whose concepts are food."""
    whole = squares()
    return [replace(each, group=("objects", "food")[index % 2]) for index, each in enumerate(whole)]


def write_squares(folder: Path) -> Path:
    """The shards of :func:`squares`."""
    write_shards(squares(), folder)
    return folder


def config_for(shards: Path | str, **changes: Any) -> EvaluationConfig:
    """Few prompts, few steps."""
    values = {"prompts": 12, "candidates": 6, "reference": 16, "samples": 5, "batch_size": 12, **FAST}
    return EvaluationConfig("bundle", DataConfig(str(shards)), **{**values, **changes})
