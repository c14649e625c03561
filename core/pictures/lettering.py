"""Labels on pictures: a font that has their letters, and lines that fit."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
)
"""Looked for, in this order, where Pillow's built-in font lacks a letter; it has little beyond English."""

LEAST = 6  # pixels: the smallest letters that can be read
SMALLEST = 0.8  # of the size asked for: as far as labels shrink before they are cut
_MISSING = "\uffff"  # never a character, so that every font draws its sign for a missing one


@dataclass(frozen=True)
class Lettering:
    """Labels as they are drawn, all in one font.

    Attributes:
        font: with its size.
        lines: of each label.
        line_height: pixels from one line to the next, room for all that the font draws.
    """

    font: Font
    lines: list[list[str]]
    line_height: int

    def height(self, index: int) -> int:
        """Of one label, in pixels."""
        return self.line_height * len(self.lines[index])

    @property
    def width(self) -> int:
        """Of the longest line, in pixels."""
        return max(
            (math.ceil(self.font.getlength(line)) for lines in self.lines for line in lines), default=0
        )

    def write(
        self,
        pen: ImageDraw.ImageDraw,
        index: int,
        place: tuple[float, float],
        colour: str | tuple[int, ...],
        anchor: str = "l",
    ) -> float:
        """Draw a label and tell where the next line would begin.

        Args:
            place: its top, and its left edge (``anchor`` l), middle (m) or right edge (r).
        """
        left, top = place
        for line in self.lines[index]:
            pen.text((left, top), line, fill=colour, font=self.font, anchor=f"{anchor}a")
            top += self.line_height
        return top


def fit(texts: Sequence[str], size: int, width: int, max_lines: int) -> Lettering:
    """Set labels in lines of at most ``width`` pixels, at most ``max_lines`` each.

    All are set smaller, down to 80%, if that saves one of them from being cut or a word from being broken;
    what does not fit even then ends in an ellipsis.
    """
    for smaller in range(size, max(1, round(size * SMALLEST)) - 1, -1):
        font, legible = font_for(texts, smaller)
        if all(_fits(text, font, width, max_lines) for text in legible):
            break
    return Lettering(font, [wrap(text, font, width, max_lines) for text in legible], _line_height(font, size))


def largest(words: str, width: int, height: int) -> Lettering:
    """Set words as large as they fit into a box, in as many lines as that takes.

    Raises:
        ValueError: they do not even fit in letters of LEAST pixels.
    """
    low, high, found = LEAST, height, None
    while low <= high:
        size = (low + high) // 2
        font, texts = font_for([words], size)
        line = _line_height(font, size)
        if _fits(texts[0], font, width, height // line):
            found = Lettering(font, [_lines(texts[0], font, width)], line)
            low = size + 1
        else:
            high = size - 1
    if found is None:
        raise ValueError(
            f"words: {words!r} do not fit into {width}×{height} pixels in letters of {LEAST}; make the "
            f"width or the height larger, or write fewer"
        )
    return found


def font_for(texts: Sequence[str], size: int) -> tuple[Font, list[str]]:
    """A font for labels, and the labels as it can write them.

    Pillow's built-in font where it has every letter, so that sheets look the same on every machine; else the
    first of SYSTEM_FONTS that has them, or the one that lacks the fewest. Accents are dropped from letters
    that the font has only without; what it does not have at all is drawn as an empty box.
    """
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    fewest: tuple[int, Font] | None = None
    for font in _fonts(size):
        missing = sum(not _has(font, letter) for letter in letters)
        if fewest is None or missing < fewest[0]:
            fewest = (missing, font)
        if not missing:
            break
    assert fewest is not None  # there is always the built-in font
    missing, font = fewest
    return font, [_without_accents(text, font) if missing else text for text in texts]


def wrap(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words, or within a word that is wider than a line.

    What is left after ``max_lines`` is cut, and the last line then ends in an ellipsis.
    """
    lines = _lines(text, font, width)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + "…"]


def _line_height(font: Font, size: int) -> int:
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (size, 0)
    return ascent + descent


def _fits(text: str, font: Font, width: int, max_lines: int) -> bool:
    unbroken = (word for word in text.split() if not _may_break(word))
    return all(font.getlength(word) <= width for word in unbroken) and (
        len(_lines(text, font, width)) <= max_lines
    )


def _may_break(word: str) -> bool:
    """Chinese, Japanese and Korean have no spaces and break anywhere."""
    return any(unicodedata.east_asian_width(letter) in "WF" for letter in word)


def _lines(text: str, font: Font, width: int) -> list[str]:
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
            count = _fitting(current, font, width)
            lines.append(current[:count])
            current = current[count:]
    return [*lines, current] if current else lines


def _fitting(word: str, font: Font, width: int) -> int:
    """How many characters of a word fit into a line; at least one."""
    count = 1
    while count < len(word) and font.getlength(word[: count + 1]) <= width:
        count += 1
    return count


def _fonts(size: int) -> Iterator[Font]:
    yield ImageFont.load_default(size)
    for name in SYSTEM_FONTS:
        font = _system_font(name, size)
        if font is not None:
            yield font


@lru_cache(maxsize=256)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ImportError):  # not on this machine; Pillow without FreeType
        return None


def _has(font: Font, letter: str) -> bool:
    try:
        drawn, missing = font.getmask(letter), font.getmask(_MISSING)
    except UnicodeEncodeError:  # Pillow's bitmap font, which stands in where it is built without FreeType
        return False
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _without_accents(text: str, font: Font) -> str:
    """Each letter that the font lacks, as its base letter if the font has that."""

    def plain(letter: str) -> str:
        base = unicodedata.normalize("NFKD", letter)[0]
        return base if base != letter and not _has(font, letter) and _has(font, base) else letter

    return "".join(letter if letter.isspace() else plain(letter) for letter in text)
