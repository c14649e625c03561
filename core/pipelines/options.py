"""What the options of all sampled stages have in common: the ranges of their values."""

from __future__ import annotations

import math
from typing import Any

from ..diffusion.samplers import SAMPLERS


def check_options(options: Any) -> None:
    """Raise a ValueError that names the first value out of range.

    Args:
        options: a dataclass with some of these fields; others are its own to check. ``steps`` and
            ``candidates`` are 1 or more, ``guidance_scale`` 0 or more, ``guidance_interval`` a range within 0
            to 1, ``guidance_rescale`` and ``eta`` 0 to 1, ``sampler`` one of ``SAMPLERS``.
    """
    given = vars(options)
    require_at_least(1, **{name: given[name] for name in ("steps", "candidates") if name in given})
    scale = given.get("guidance_scale", 1.0)
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"guidance_scale is {scale}; expected 0 or more, 1 for no guidance")
    low, high = given.get("guidance_interval", (0.0, 1.0))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"guidance_interval is {low} to {high}; expected a range within 0 to 1")
    for name in ("guidance_rescale", "eta"):
        if not 0 <= given.get(name, 0.0) <= 1:
            raise ValueError(f"{name} is {given[name]}; expected 0 to 1")
    if "sampler" in given and given["sampler"] not in SAMPLERS:
        raise ValueError(f"sampler {given['sampler']!r} is not known; choose one of {', '.join(SAMPLERS)}")


def require_at_least(least: int, why: str = "", **values: float) -> None:
    """Raise a ValueError that names the first value below ``least``, and says why that is the least."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} is {value}; expected at least {least}{why and f', {why}'}")
