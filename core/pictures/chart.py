"""Small charts: bars with their names, a curve, and panels of curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from .lettering import fit
from .sheet import THEMES, Colour, Theme

BAR: Colour = (176, 184, 196)
LEADING: Colour = (58, 110, 165)
MAX_LINES = 3  # of a name


def bar_chart(
    names: Sequence[str], shares: Sequence[float], *, width: int = 640, background: str = "white"
) -> Image.Image:
    """Shares as horizontal bars below their names, in the order given, the largest one in colour.

    The letters are as large as they can be in a square, from width/32 to width/16, so that they stay legible
    in a cell of a sheet; of many bars the chart is taller than wide.

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
    theme, percents = THEMES[background], [f"{share:.1%}" for share in shares]
    least, most = max(10, width // 32), max(10, width // 16)
    for size in range(most, least - 1, -1):
        # Space around and between bars, and a column of percents, whose widest is as wide as 100.0%.
        gap, column, thick = max(4, size // 2), 4 * size, size // 2
        lettering = fit([*names, *percents], size, width - 3 * gap - column, MAX_LINES)
        tall = [max(lettering.height(index), lettering.line_height) + gap // 4 for index in range(len(names))]
        height = gap + sum(each + thick + gap for each in tall)
        if height <= width:
            break
    picture = Image.new("RGB", (width, height), theme.paper)
    draw = ImageDraw.Draw(picture)
    top, leading = gap, max(range(len(shares)), key=shares.__getitem__)
    for index, share in enumerate(shares):
        lettering.write(draw, index, (gap, top), theme.ink)
        lettering.write(draw, len(names) + index, (width - gap, top), theme.ink, "r")
        bar = (gap, top + tall[index], width - gap, top + tall[index] + thick)
        draw.rectangle(bar, outline=theme.frame)
        filled = round(share * (width - 2 * gap))
        if filled:
            colour = LEADING if index == leading else BAR
            draw.rectangle((*bar[:2], gap + filled, bar[3]), fill=colour)
        top = bar[3] + gap
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


def panel_chart(
    names: Sequence[str],
    panels: Mapping[str, Sequence[float | None]],
    *,
    width: int = 640,
    background: str = "white",
) -> Image.Image:
    """Several curves over the same names, each in a panel with a scale of its own, below each other.

    Args:
        names: of the places from left to right; where they are many, only some are written.
        panels: values at these places by the panel's title; None leaves a place out.
        width: of the picture in pixels; its height follows from the panels.

    Raises:
        ValueError: no names or panels, another number of values than names, or a panel without any value.
    """
    if not names or not panels:
        raise ValueError(f"chart: found {len(names)} names and {len(panels)} panels; expected some of each")
    for title, values in panels.items():
        if len(values) != len(names) or all(value is None for value in values):
            raise ValueError(
                f"chart: found the values {list(values)[:4]} of {title!r} for {len(names)} names; expected "
                f"one for each, not all of them missing"
            )
    theme, letters = THEMES[background], max(10, width // 32)
    left, right, panel_height = 4 * letters, width - 2 * letters, round(width * 0.32)
    every = _tick(len(names))
    step = (right - left) / len(names)  # each name in the middle of its place
    places = [left + (index + 0.5) * step for index in range(len(names))]
    words = fit(names[::every], letters, max(letters, round(step * every) - letters // 2), MAX_LINES)
    below = max(words.height(index) for index in range(len(words.lines))) + letters
    picture = Image.new("RGB", (width, len(panels) * panel_height + below), theme.paper)
    draw = ImageDraw.Draw(picture)
    for number, (title, values) in enumerate(panels.items()):
        top = number * panel_height
        points = [(x, value) for x, value in zip(places, values, strict=True) if value is not None]
        _draw_panel(draw, title, points, (left, top, right, top + panel_height), letters, theme)
    for index, x in enumerate(places[::every]):
        words.write(draw, index, (x, len(panels) * panel_height + letters // 2), theme.ink, "m")
    return picture


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    title: str,
    points: Sequence[tuple[float, float]],
    box: tuple[int, int, int, int],
    letters: int,
    theme: Theme,
) -> None:
    """A title above a grid with its scale and a curve with a dot at each value; ``points`` are (x, value)."""
    left, top, right, bottom = box
    ticks, decimals = _scale(min(value for _, value in points), max(value for _, value in points))
    lettering = fit([title, *(f"{tick:.{decimals}f}" for tick in ticks)], letters, right - left, max_lines=1)
    font, line = lettering.font, lettering.line_height
    lettering.write(draw, 0, (left, top + letters // 4), theme.ink)
    upper, lower = top + letters // 2 + 1.5 * line, bottom - line / 2

    def height(value: float) -> float:
        return lower - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (lower - upper)

    for index, tick in enumerate(ticks, 1):
        draw.line((left, height(tick), right, height(tick)), fill=theme.frame)
        place = (left - letters // 2, height(tick))
        draw.text(place, lettering.lines[index][0], fill=theme.ink, font=font, anchor="rm")
    curve, radius = [(x, height(value)) for x, value in points], max(3, letters // 4)
    draw.line(curve, fill=LEADING, width=max(2, letters // 5), joint="curve")
    for x, y in curve:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=LEADING)


def _scale(low: float, high: float) -> tuple[list[float], int]:
    """Two to five round numbers that reach from below one value to above another, and their decimals."""
    step = _round_step(max((high - low) / 3, 0.01))
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [number * step for number in range(first, last + 1)], max(0, -math.floor(math.log10(step)))


def _tick(count: int) -> int:
    """A round distance of marks that gives at most about ten of them."""
    return int(_round_step(max(1.0, count / 10)))


def _round_step(rough: float) -> float:
    """The first of 1, 2, 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
