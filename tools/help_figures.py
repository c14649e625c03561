"""Rows of pictures with captions, and signs between them, for the help pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from unclip.core.pictures.lettering import fit
from unclip.core.pictures.sheet import THEMES, TINY

WIDTH = 640  # of every picture of a help page; the panel shows it at half of that or a little more
THEME = THEMES["black"]
INK, SOFT = (232, 234, 240), (168, 174, 188)
MARGIN, GAP, SIGN = 14, 10, 34  # SIGN: the gap with an arrow or a plus in it
TALLEST = 250  # pixels of a row, where nothing else is said
CAPTION, TITLE = 23, 24  # sizes of letters


@dataclass(frozen=True)
class Part:
    """A picture in a row.

    Attributes:
        caption: written below it.
        sign: drawn between it and the one to its left: ``"→"``, ``"+"`` or nothing.
    """

    picture: Image.Image
    caption: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Row:
    """Pictures side by side, all of one height, below a title.

    Attributes:
        tallest: pixels that the pictures may be high at most.
    """

    parts: Sequence[Part]
    title: str = ""
    tallest: int = TALLEST


def strip(pictures: Sequence[Image.Image], captions: Sequence[str], title: str = "") -> Row:
    """A row without signs."""
    parts = [Part(*pair) for pair in zip(pictures, captions, strict=True)]
    return Row(parts, title)


def figure(*rows: Row) -> Image.Image:
    """Draw rows as one picture of WIDTH pixels, each row as tall as it fits."""
    drawn = [_draw_row(row) for row in rows]
    height = sum(row.height for row in drawn) + GAP * (len(drawn) - 1) + 2 * MARGIN
    sheet = Image.new("RGB", (WIDTH, height), THEME.paper)
    top = MARGIN
    for row in drawn:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return sheet


def _draw_row(row: Row) -> Image.Image:
    gaps = [0 if index == 0 else SIGN if part.sign else GAP for index, part in enumerate(row.parts)]
    ratios = [part.picture.width / part.picture.height for part in row.parts]
    height = min(row.tallest, int((WIDTH - 2 * MARGIN - sum(gaps)) / sum(ratios)))
    widths = [round(height * ratio) for ratio in ratios]
    left = (WIDTH - sum(widths) - sum(gaps)) // 2
    title = fit([row.title], TITLE, WIDTH - 2 * MARGIN, 2)
    captions = fit([part.caption for part in row.parts], CAPTION, min(widths) + GAP // 2, 3)
    above = title.height(0) + (4 if row.title else 1)
    below = max(captions.height(index) for index in range(len(row.parts)))
    picture = Image.new("RGB", (WIDTH, above + height + below + (4 if below else 0)), THEME.paper)
    pen = ImageDraw.Draw(picture)
    title.write(pen, 0, (left, 0), INK)
    for index, (part, width, gap) in enumerate(zip(row.parts, widths, gaps, strict=True)):
        if part.sign:
            _sign(pen, part.sign, (left + gap / 2, above + height / 2))
        left += gap
        picture.paste(_resized(part.picture, (width, height)), (left, above))
        pen.rectangle((left - 1, above - 1, left + width, above + height), outline=THEME.frame)  # for masks
        captions.write(pen, index, (left + width / 2, above + height + 4), SOFT, "m")
        left += width
    return picture


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Tiny pictures keep their pixels, all others are resampled smoothly."""
    tiny = max(picture.size) <= TINY and size[0] > picture.width
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)


def _sign(pen: ImageDraw.ImageDraw, sign: str, middle: tuple[float, float]) -> None:
    x, y = middle
    half = SIGN / 2 - 7
    pen.line((x - half, y, x + half - (5 if sign == "→" else 0), y), SOFT, 3)
    if sign == "→":
        pen.polygon(((x + half, y), (x + half - 9, y - 7), (x + half - 9, y + 7)), SOFT)
    else:
        pen.line((x, y - half, x, y + half), SOFT, 3)
