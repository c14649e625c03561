"""Which process of a distributed run this is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One of ``world`` training processes."""

    rank: int = 0
    world: int = 1
