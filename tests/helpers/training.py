"""Hand-made pictograms: as npm packages, as objects, and as shards."""

from __future__ import annotations

import json
from pathlib import Path

from unclip.core.data.pictograms import Pictogram, write_shards

# Left, top, width and height of a rectangle in a picture of 16 by 16, and its colour.
SHAPES = {
    "red apple": (3, 3, 10, 10, "#d02020"),
    "green leaf": (2, 5, 12, 6, "#20a040"),
    "blue car": (1, 8, 14, 5, "#2040d0"),
    "yellow star": (6, 2, 4, 12, "#e0c020"),
    "black crow": (4, 6, 8, 9, "#202020"),
    "white mouse": (2, 2, 5, 5, "#f0f0f0"),
}
STYLES = ("noto", "twemoji")


def body(concept: str, style: str) -> str:
    """A rectangle; round in the second style."""
    x, y, width, height, colour = SHAPES[concept]
    corner = 3 if style == STYLES[1] else 0
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{corner}" fill="{colour}"/>'


def svg(concept: str, style: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{body(concept, style)}</svg>'


def pictograms() -> list[Pictogram]:
    """Every shape in every style; none of these twelve is held out."""
    return [
        Pictogram(
            key=f"{style}/{concept.replace(' ', '-')}",
            concept=concept,
            style=style,
            group="objects",
            keywords=("thing", "stuff"),
            svg=svg(concept, style),
        )
        for style in STYLES
        for concept in SHAPES
    ]


def write_tiny_shards(folder: Path) -> Path:
    write_shards(pictograms(), folder)
    return folder


def write_packages(folder: Path) -> Path:
    """Icon sets of two styles with the names of five emojis, as ``npm pack`` unpacks them."""
    names = [
        {"label": "Red apple", "group": 4, "tags": ["fruit", "red apple", "Apple", "pomme à cuire"]},
        {"label": "black crow", "group": 3, "tags": ["animal"], "skins": []},
        {"label": "blue car", "group": 5, "tags": []},
        {"label": "flag: “Nowhere”", "group": 9, "tags": []},
        {"label": "regional indicator A"},
    ]
    _write_json(folder / "emojibase-data" / "en" / "data.json", names)
    for style, extra in zip(STYLES, ({"width": 32, "left": -8}, {}), strict=True):
        icons = {
            "red-apple": {"body": body("red apple", style)},
            "black-crow": {"body": body("black crow", style), **extra},
            "black-crow-light-skin-tone": {"body": body("black crow", style)},
            "flag-nowhere": {"body": body("blue car", style)},
            "1f697": {"body": body("blue car", style)},
        }
        if style == STYLES[1]:
            icons["blue-car"] = {"body": body("blue car", style)}
        _write_json(
            folder / style / "icons.json", {"prefix": style, "icons": icons, "width": 16, "height": 16}
        )
    return folder


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
