"""Labelled sheets of pictures: like a page, or in rows and columns that have names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from .lettering import Lettering, fit

Colour = tuple[int, int, int]
Axis = Literal["row", "column"]

TINY = 128  # pixels: pictures up to here are enlarged pixel by pixel, larger ones smoothly
MAX_SIDE = 16384  # pixels of a sheet: what viewers and graphics cards still take
MAX_LINES = 5  # of a label


@dataclass(frozen=True)
class Theme:
    """Colours of a sheet."""

    paper: Colour
    ink: Colour
    frame: Colour


THEMES = {
    "white": Theme(paper=(255, 255, 255), ink=(40, 40, 44), frame=(205, 205, 210)),
    "grey": Theme(paper=(96, 96, 98), ink=(245, 245, 245), frame=(130, 130, 133)),
    "black": Theme(paper=(0, 0, 0), ink=(225, 225, 228), frame=(70, 70, 74)),
}


@dataclass(frozen=True)
class SheetStyle:
    """How a sheet looks.

    Attributes:
        cell_size: side of the square that every picture is fitted into; 0 for the size of the largest.
        padding: pixels between cells and around all.
        font_size: of the labels below pictures; 0 for one that suits the cells. Names of rows and columns
            are a little larger.
        background: one of THEMES.
    """

    cell_size: int = 0
    padding: int = 12
    font_size: int = 0
    background: str = "white"

    def __post_init__(self) -> None:
        for name in ("cell_size", "padding", "font_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.background not in THEMES:
            raise ValueError(
                f"background {self.background!r} is not known; choose one of {', '.join(THEMES)}"
            )


@dataclass(frozen=True)
class Tile:
    """A picture and what is written below it."""

    picture: Image.Image
    label: str = ""


Rows = Sequence[Sequence["Tile | None"]]
"""What a sheet shows, from top to bottom, from left to right; None, or a short row, leaves places empty."""


def to_pil(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in 0..1 → B pictures in RGB."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    return [
        Image.fromarray(picture.numpy()) for picture in rearrange(pixels, "b c h w -> b h w c").contiguous()
    ]


def from_pil(picture: Image.Image) -> Tensor:
    """A picture → [1, 3, H, W] float32 in 0..1."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))  # [H, W, 3]
    return rearrange(pixels, "h w c -> 1 c h w").float() / 255


def tiles(pictures: Sequence[Image.Image], labels: Sequence[str] = (), name: str = "labels") -> list[Tile]:
    """Pictures with their labels: one for each, or none at all; ``name`` is that of the labels, for messages.

    Raises:
        ValueError: another number of labels than pictures.
    """
    if labels and len(labels) != len(pictures):
        raise ValueError(
            f"{name}: found {len(labels)} for {len(pictures)} pictures; expected one for each, or none"
        )
    return [Tile(*pair) for pair in zip(pictures, labels or [""] * len(pictures), strict=True)]


def page(items: Sequence[Tile], columns: int | None = None) -> list[list[Tile | None]]:
    """Rows that are read like a page; by default about as many columns as rows.

    Raises:
        ValueError: no pictures, or fewer than one column.
    """
    if not items:
        raise ValueError("pictures: found none, expected at least one for a sheet")
    columns = columns if columns is not None else math.ceil(math.sqrt(len(items)))
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1")
    return [[*items[start : start + columns]] for start in range(0, len(items), columns)]


def side_by_side(groups: Sequence[Sequence[Tile]], each: Axis) -> list[list[Tile | None]]:
    """Rows of a sheet in which each group of pictures is one row, or one column."""
    longest = max(len(group) for group in groups)
    padded = [[*group, *[None] * (longest - len(group))] for group in groups]
    return padded if each == "row" else [list(row) for row in zip(*padded, strict=True)]


def arrange(
    groups: Sequence[Sequence[Tile]],
    *,
    each: Axis = "row",
    columns: int = 0,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> list[list[Tile | None]]:
    """Rows of a sheet for groups of pictures.

    Args:
        groups: without ``columns`` each becomes one row or column; one group alone, a page with as many
            columns as column labels, or else with as many rows as row labels, or else about square.
        each: what a group becomes.
        columns: if not 0, all pictures, group after group, make a page of so many columns.
        row_labels, column_labels: names that the sheet will have; only their number counts.

    Raises:
        ValueError: no pictures.
    """
    items = [tile for group in groups for tile in group]
    if columns or len(groups) == 1:
        rows = len(row_labels)
        return page(items, columns or len(column_labels) or (math.ceil(len(items) / rows) if rows else None))
    return side_by_side(groups, each)


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    style: SheetStyle = SheetStyle(),
) -> Image.Image:
    """Pictures of any sizes, read like a page, each over its caption.

    Raises:
        ValueError: no pictures, another number of captions than pictures, or fewer than one column.
    """
    return draw_sheet(page(tiles(pictures, captions, "captions"), columns), style=style)


def draw_sheet(
    rows: Rows,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    style: SheetStyle = SheetStyle(),
) -> Image.Image:
    """Draw a sheet.

    Pictures keep their proportions and are centred in their places, all of one size. Small ones grow by whole
    factors, so that their pixels stay sharp; all others are resampled smoothly (Lanczos). Labels are wrapped,
    then set smaller, then cut with an ellipsis.

    Args:
        rows: at least one picture.
        row_labels, column_labels: names at the left and at the top; there may be fewer than rows or columns.

    Raises:
        ValueError: no pictures, more names than rows or columns, or a sheet of more than MAX_SIDE pixels.
    """
    width = max((len(row) for row in rows), default=0)
    for name, labels, count in (("row", row_labels, len(rows)), ("column", column_labels, width)):
        if len(labels) > count:
            raise ValueError(
                f"{name}_labels: found {len(labels)} names for {count} {name}s; expected at most {count}"
            )
    if not any(tile for row in rows for tile in row):
        raise ValueError("pictures: found none, expected at least one for a sheet")
    return _Layout(rows, row_labels, column_labels, style).draw()


class _Layout:
    """Sizes and places of everything on a sheet."""

    def __init__(
        self, rows: Rows, row_labels: Sequence[str], column_labels: Sequence[str], style: SheetStyle
    ) -> None:
        self.style, self.theme = style, THEMES[style.background]
        self.rows = [list(row) for row in rows]
        self.columns = max(len(row) for row in rows)
        pictures = [tile.picture for row in rows for tile in row if tile]
        largest = max(p.width for p in pictures), max(p.height for p in pictures)
        self.limit = (style.cell_size, style.cell_size) if style.cell_size else largest
        sizes = [_fitted(picture.size, self.limit) for picture in pictures]
        self.cell = max(size[0] for size in sizes), max(size[1] for size in sizes)

        captions = [tile.label if tile else "" for row in self.rows for tile in row]
        size = style.font_size or min(max(round(self.cell[0] / 14), 12), 64)
        heading = round(size * 1.15)
        names = (column_labels, heading, 8 * heading)
        # Narrow pictures get columns that are wide enough for a few words.
        words = [fit(*each, MAX_LINES).width for each in ((captions, size, 8 * size), names)]
        self.width = max(self.cell[0], *words)
        labelled = any((*captions, *column_labels, *row_labels))
        self.margin = max(style.padding, size // 2) if labelled else style.padding
        self.space = max(4, size // 3)  # between a label and what it names
        across = self.width - max(0, size // 2 - style.padding)  # labels of neighbours stay apart
        self.captions = fit(captions, size, across, MAX_LINES)
        self.column_labels = fit(column_labels, heading, across, MAX_LINES)
        lines = max(1, self.cell[1] // (2 * heading))
        self.row_labels = fit(row_labels, heading, max(self.cell[0], 9 * heading), max(lines, 2))

        # Pixels from the left edge to the first column, from the top to the first row, and of every row.
        self.left = self.margin + (self.row_labels.width + 2 * self.space if any(row_labels) else 0)
        tallest = _tallest(self.column_labels, range(len(column_labels)))
        self.top = self.margin + (tallest + self.space if tallest else 0)
        self.heights: list[int] = []
        self.first: list[int] = []  # number of the first caption of each row
        start = 0
        for row in self.rows:
            tall = _tallest(self.captions, range(start, start + len(row)))
            below = self.space + tall if tall else 0
            least = _tallest(self.row_labels, [len(self.heights)])
            self.heights.append(max(self.cell[1], least) + below)
            self.first.append(start)
            start += len(row)

    @property
    def size(self) -> tuple[int, int]:
        gap = self.style.padding
        across = self.left + self.columns * (self.width + gap) - gap + self.margin
        return across, self.top + sum(self.heights) + (len(self.rows) - 1) * gap + self.margin

    def draw(self) -> Image.Image:
        if max(self.size) > MAX_SIDE:
            raise ValueError(
                f"the sheet would have {self.size[0]}×{self.size[1]} pixels, expected at most {MAX_SIDE} on "
                f"each side; choose smaller cells or fewer pictures"
            )
        self.sheet = Image.new("RGB", self.size, self.theme.paper)
        self.pen = ImageDraw.Draw(self.sheet)
        step = self.width + self.style.padding
        middles = [self.left + self.width // 2 + column * step for column in range(self.columns)]
        for index in range(len(self.column_labels.lines)):
            above = self.top - self.space - self.column_labels.height(index)
            self._write(self.column_labels, index, (middles[index], above), "m")
        top = self.top
        for number, row in enumerate(self.rows):
            centre = top + self.cell[1] // 2
            if number < len(self.row_labels.lines):
                above = max(top, centre - self.row_labels.height(number) // 2)
                self._write(self.row_labels, number, (self.left - 2 * self.space, above), "r")
            for column, tile in enumerate(row):
                if tile:
                    self._paste(tile.picture, (middles[column], centre))
                below = (middles[column], top + self.cell[1] + self.space)
                self._write(self.captions, self.first[number] + column, below, "m")
            top += self.heights[number] + self.style.padding
        return self.sheet

    def _paste(self, picture: Image.Image, centre: tuple[int, int]) -> None:
        size = _fitted(picture.size, self.limit)
        picture = _resized(picture.convert("RGB"), size)
        x, y = centre[0] - size[0] // 2, centre[1] - size[1] // 2
        self.sheet.paste(picture, (x, y))
        if self.style.padding > 1:
            # Just outside the picture, so that one in the paper's colour has an edge.
            self.pen.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=self.theme.frame)

    def _write(self, lettering: Lettering, index: int, place: tuple[int, int], anchor: str) -> None:
        """Draw a label; ``place`` is its top, and its middle (``anchor`` m) or right edge (r)."""
        lettering.write(self.pen, index, place, self.theme.ink, anchor)


def _fitted(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """Size of a picture in a place: as large as it goes, but by a whole factor where it grows from tiny."""
    scale = min(limit[0] / size[0], limit[1] / size[1])
    if scale >= 2 and max(size) <= TINY:
        scale = int(scale)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if size == picture.size:
        return picture
    whole = max(picture.size) <= TINY and size[0] >= 2 * picture.width
    return picture.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _tallest(lettering: Lettering, indices: Sequence[int]) -> int:
    """Height of the tallest of some labels; 0 where there are none."""
    return max((lettering.height(index) for index in indices if index < len(lettering.lines)), default=0)
