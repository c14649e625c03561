"""A card with words on it, such as one sticks on things."""

from __future__ import annotations

from PIL import Image, ImageDraw

from .lettering import largest
from .sheet import THEMES

BORDER = 0.08  # of the shorter side: left free around the words


def word_card(words: str, size: tuple[int, int], background: str = "white") -> Image.Image:
    """Words in the middle of a framed card, as large as they fit.

    Args:
        words: one or more; lines are broken where that makes them larger.
        size: width and height in pixels.
        background: one of ``sheet.THEMES``.

    Raises:
        ValueError: no words, or a card too small for them.
    """
    if not words.strip():
        raise ValueError("words: found none; write at least one for the card")
    theme, (width, height) = THEMES[background], size
    border = max(1, round(min(size) * BORDER))
    lettering = largest(words, max(0, width - 2 * border), max(0, height - 2 * border))
    card = Image.new("RGB", size, theme.paper)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, width - 1, height - 1), outline=theme.frame, width=max(1, border // 4))
    lines = lettering.lines[0]
    top = (height - lettering.line_height * len(lines)) / 2
    for number, line in enumerate(lines):
        middle = (width / 2, top + (number + 0.5) * lettering.line_height)
        pen.text(middle, line, fill=theme.ink, font=lettering.font, anchor="mm")
    return card
