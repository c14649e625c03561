"""Which scale of plain guidance has the CLIP score of another guidance."""

from __future__ import annotations

from collections.abc import Callable

EQUAL = 0.0005  # CLIP scores no further apart than that count as equal
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)  # tried in this order
FINEST = 0.05  # no two scales that are tried are closer


def equal_scale(target: float, score: Callable[[float], float]) -> float | None:
    """The first scale of plain guidance, from 1 upwards, that gives a CLIP score; None where none does.

    Args:
        score: scale → CLIP score, which need not rise throughout.
    """
    low, low_score = SCALES[0], score(SCALES[0])
    if abs(low_score - target) <= EQUAL:
        return low
    for high in SCALES[1:]:
        high_score = score(high)
        if abs(high_score - target) <= EQUAL:
            return high
        if (low_score < target) != (high_score < target):
            return _scale_between(target, score, (low, low_score), (high, high_score))
        low, low_score = high, high_score
    return None


def _scale_between(
    target: float, score: Callable[[float], float], low: tuple[float, float], high: tuple[float, float]
) -> float:
    """By false position between (scale, CLIP score) on both sides of the target."""
    while high[0] - low[0] > 1.5 * FINEST:
        share = (target - low[1]) / (high[1] - low[1])
        guess = FINEST * round((low[0] + share * (high[0] - low[0])) / FINEST)
        scale = round(min(max(guess, low[0] + FINEST), high[0] - FINEST), 2)
        found = (scale, score(scale))
        if abs(found[1] - target) <= EQUAL:
            return scale
        if (found[1] < target) == (low[1] < target):
            low = found
        else:
            high = found
    return min(low, high, key=lambda each: abs(each[1] - target))[0]
