"""Small charts: bars with their names, and a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .lettering import fit
from .sheet import THEMES, Colour

BAR: Colour = (176, 184, 196)
LEADING: Colour = (58, 110, 165)
MAX_LINES = 3  # of a name


def bar_chart(
    names: Sequence[str], shares: Sequence[float], *, width: int = 640, background: str = "white"
) -> Image.Image:
    """Shares as horizontal bars, in the order given, the largest one in colour.

    Args:
        names: what each bar is.
        shares: each in 0..1, drawn against 1 and written in percent.
        width: of the picture in pixels; its height follows from the bars.
        background: one of ``sheet.THEMES``.

    Raises:
        ValueError: no bars, another number of shares than names, or a share outside 0..1.
    """
    if not names or len(names) != len(shares):
        raise ValueError(f"chart: found {len(names)} names and {len(shares)} shares; expected one for each")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"chart: found shares from {min(shares):g} to {max(shares):g}, expected 0 to 1")
    theme = THEMES[background]
    size = max(10, width // 40)
    gap = size
    name_width, number_width = round(width * 0.36), 4 * size
    bar_width = width - name_width - number_width - 4 * gap
    lettering = fit([*names, *(f"{share:.1%}" for share in shares)], size, name_width, MAX_LINES)
    heights = [max(lettering.height(index), lettering.line_height) for index in range(len(names))]
    picture = Image.new("RGB", (width, gap + sum(height + gap for height in heights)), theme.paper)
    draw = ImageDraw.Draw(picture)
    left, top, leading = gap + name_width + gap, gap, max(range(len(shares)), key=shares.__getitem__)
    for index, (share, height) in enumerate(zip(shares, heights, strict=True)):
        for number, line in enumerate(lettering.lines[index]):
            y = top + (height - lettering.height(index)) // 2 + number * lettering.line_height
            draw.text((gap, y), line, fill=theme.ink, font=lettering.font)
        colour = LEADING if index == leading else BAR
        middle = top + height // 2
        bar = (left, middle - size // 2, left + bar_width, middle + size // 2)
        draw.rectangle(bar, outline=theme.frame)
        filled = round(share * bar_width)
        if filled:
            draw.rectangle((*bar[:2], left + filled, bar[3]), fill=colour)
        percent = lettering.lines[len(names) + index][0]
        draw.text(
            (left + bar_width + gap, middle - lettering.line_height // 2),
            percent,
            fill=theme.ink,
            font=lettering.font,
        )
        top += height + gap
    return picture


def curve_chart(
    values: Sequence[float],
    *,
    title: str = "",
    size: tuple[int, int] = (640, 420),
    background: str = "white",
) -> Image.Image:
    """Shares 0..1 at 1, 2, … as a curve over a grid, with percent on the left and numbers below.

    Raises:
        ValueError: no values, or one outside 0..1.
    """
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"chart: found the values {list(values)[:4]}, expected some within 0 to 1")
    theme, (width, height) = THEMES[background], size
    letters = max(10, width // 45)
    steps = [index / 4 for index in range(5)]
    every = _tick(len(values))
    ticks = [1, *range(every, len(values) + 1, every)] if every > 1 else [*range(1, len(values) + 1)]
    lettering = fit(
        [title, *(f"{step:.0%}" for step in steps), *map(str, ticks)], letters, width, max_lines=1
    )
    font, line = lettering.font, lettering.line_height
    left, right, top, bottom = 4 * letters, width - 2 * letters, letters + 2 * line, height - letters - line

    def place(number: float, value: float) -> tuple[float, float]:
        across = (number - 1) / max(1, len(values) - 1)
        return left + across * (right - left), bottom - value * (bottom - top)

    picture = Image.new("RGB", size, theme.paper)
    draw = ImageDraw.Draw(picture)
    draw.text((left, letters // 2), title, fill=theme.ink, font=font)
    for step in steps:
        y = place(1, step)[1]
        draw.line((left, y, right, y), fill=theme.frame)
        text = f"{step:.0%}"
        draw.text((left - letters // 2 - font.getlength(text), y - line / 2), text, fill=theme.ink, font=font)
    for tick in ticks:
        x = place(tick, 0)[0]
        draw.line((x, bottom, x, bottom + letters // 3), fill=theme.ink)
        text = str(tick)
        draw.text((x - font.getlength(text) / 2, bottom + letters // 2), text, fill=theme.ink, font=font)
    points = [place(number, value) for number, value in enumerate(values, 1)]
    draw.line(points, fill=LEADING, width=max(2, width // 250), joint="curve")
    if len(points) <= 40:
        radius = max(2, width // 200)
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=LEADING)
    return picture


def _tick(count: int) -> int:
    """A round distance of marks that gives at most about ten of them."""
    rough = max(1.0, count / 10)
    power = 10 ** math.floor(math.log10(rough))
    return next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= rough)
