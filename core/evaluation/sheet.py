"""Labelled contact sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER = (255, 255, 255)
INK = (40, 40, 44)
FRAME = (205, 205, 210)


def to_pil(images: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in 0..1 → B pictures in RGB."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    return [
        Image.fromarray(picture.numpy()) for picture in rearrange(pixels, "b c h w -> b h w c").contiguous()
    ]


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    cell: int = 128,
    gap: int = 12,
    font_size: int = 12,
    max_lines: int = 5,
) -> Image.Image:
    """Pictures in a grid, read like a page, each over its caption.

    Args:
        pictures: of any sizes; those smaller than the largest are centred in their cell.
        captions: one for each picture, or none at all. Long ones are wrapped, then cut with an ellipsis.
        columns: pictures in a row; by default about as many as there are rows.
        cell: pictures smaller than this are enlarged by a whole factor, pixel by pixel, as far as it holds
            them, so that small ones can be seen and captions have room.
        gap: pixels between cells and around all.
        font_size: of Pillow's built-in font.
        max_lines: of a caption.

    Raises:
        ValueError: no pictures, another number of captions than pictures, or fewer than one column.
    """
    if not pictures:
        raise ValueError("pictures: found none, expected at least one for a contact sheet")
    if captions and len(captions) != len(pictures):
        raise ValueError(
            f"captions: found {len(captions)} for {len(pictures)} pictures; expected one for each, or none"
        )
    columns = columns if columns is not None else math.ceil(math.sqrt(len(pictures)))
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1")
    columns = min(columns, len(pictures))

    largest = max(max(picture.size) for picture in pictures)
    enlarge = max(1, cell // largest)
    width = max(cell if captions else 1, *(picture.width * enlarge for picture in pictures))
    height = max(picture.height for picture in pictures) * enlarge
    font = ImageFont.load_default(font_size)
    line_height = math.ceil(font_size * 1.25)
    labels = [wrap(text, font, width, max_lines) for text in captions] or [[] for _ in pictures]

    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    label_heights = [line_height * max(len(labels[index]) for index in row) for row in rows]
    padding = [4 if tall else 0 for tall in label_heights]
    sheet = Image.new(
        "RGB",
        (
            gap + columns * (width + gap),
            gap
            + sum(height + space + tall + gap for space, tall in zip(padding, label_heights, strict=True)),
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, space, tall in zip(rows, padding, label_heights, strict=True):
        for column, index in enumerate(row):
            picture = pictures[index].convert("RGB")
            picture = picture.resize(
                (picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST
            )
            left = gap + column * (width + gap)
            x, y = left + (width - picture.width) // 2, top + (height - picture.height) // 2
            sheet.paste(picture, (x, y))
            # Just outside the picture, so that white ones have an edge.
            draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FRAME)
            for number, line in enumerate(labels[index]):
                draw.text((left, top + height + space + number * line_height), line, fill=INK, font=font)
        top += height + space + tall + gap
    return sheet


def wrap(
    text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, max_lines: int
) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words, or within a word that is wider than a line.

    What is left after ``max_lines`` is cut, and the last line then ends in an ellipsis.
    """
    lines: list[str] = []
    current = ""
    for word in text.split():
        joined = f"{current} {word}" if current else word
        if font.getlength(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        current = word
        while font.getlength(current) > width and len(current) > 1:
            fit = _fitting(current, font, width)
            lines.append(current[:fit])
            current = current[fit:]
    if current:
        lines.append(current)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + "…"]


def _fitting(word: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> int:
    """How many characters of a word fit into a line; at least one."""
    fit = 1
    while fit < len(word) and font.getlength(word[: fit + 1]) <= width:
        fit += 1
    return fit
