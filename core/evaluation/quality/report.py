"""What an evaluation gives: numbers, and pictures to be looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Progress = Callable[[str, float, int], None]


@dataclass(frozen=True, eq=False)
class Samples:
    """The first pictures [N, 3, S, S] in 0..1 of a split or group that a prior led to, and their captions."""

    split: str
    prior: str
    captions: list[str]
    pictures: Tensor


@dataclass(frozen=True)
class Evaluation:
    """All that was measured, as plain JSON values.

    Attributes:
        results: by split, see ``evaluate``.
        samples: pictures.
        tables: further measures by name, those that the config asks for: ``groups``, ``variety`` …
    """

    results: dict[str, Any]
    samples: list[Samples]
    tables: dict[str, Any] = field(default_factory=dict)
