"""Sizes of networks: what a config may say, before anything is built from it."""

from __future__ import annotations

import math

MAX_SIZE = 1_000_000
"""Of a width, a vocabulary or a number of positions: far beyond any network, and still a number of bytes."""

MAX_WIDTH = 65_536
"""Of what convolutions and projections of a U-Net have; with its multiples still a number of bytes."""

MAX_LAYERS = 1_000
"""Of layers, blocks and levels: each is built one by one."""

MAX_CONTEXT = 4_096
"""Positions of a text transformer that keeps a mask of positions × positions."""


def require_size(name: str, value: float | tuple[float, ...], limit: float = MAX_SIZE) -> None:
    """Raise a ValueError unless a size, or each of several, is more than 0 and at most a limit.

    Args:
        name: of network and field, for the message.
    """
    values = value if isinstance(value, tuple) else (value,)
    if not all(each > 0 for each in values):
        raise ValueError(f"{name} is {value}, expected more than 0")
    if not all(each <= limit for each in values):  # also infinity
        raise ValueError(f"{name} is {value}, expected at most {limit:,}")


def require_sizes(name: str, config: object, *fields: str) -> None:
    """:func:`require_size` for these fields of a config; ``layers`` has the limit of layers."""
    for field in fields:
        limit = MAX_LAYERS if field in ("layers", "mlp_ratio") else MAX_SIZE
        require_size(f"{name}: {field}", getattr(config, field), limit)


def require_finite(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless a setting is a finite number from ``low`` to ``high``."""
    if not (math.isfinite(value) and low <= value <= high):
        upto = "" if high == math.inf else f" to {high:g}"
        raise ValueError(f"{name} is {value}, expected a finite number from {low:g}{upto}")
