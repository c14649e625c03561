"""What a layout of checkpoints is: how it is recognised, what it holds, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...stages import Stage, StageName
from ..files.weight_source import WeightSource


@dataclass(frozen=True)
class Layout:
    """One way in which one stage is stored by others than us.

    Attributes:
        name: for people, for example ``"Karlo prior (original)"``.
        stage: what it holds.
        matches: from keys and shapes alone, whether a source has this layout. It looks for the names that
            only this layout has, and no more: what else is missing or left over is told when it is loaded.
        load: (source, device, dtype) → the stage; it may read what lies beside ``source.path``. Raises
            ValueError for tensors that are missing, left over or of a wrong shape.
        config: the network's config from the shapes, for descriptions.
        space: id of the CLIP space from the shapes; None for a stage without.
        licence: of the published weights; None where several were published.
        beside: what else the stage is made of, from the files beside the source that are there.
        reads: patterns of the files that ``load`` may read, from the folder of ``source.path`` on. Those of
            ``.json`` in that folder and the one around it need not be named.
    """

    name: str
    stage: StageName
    matches: Callable[[WeightSource], bool]
    load: Callable[[WeightSource, torch.device | str, torch.dtype | None], Stage]
    config: Callable[[WeightSource], Any] | None = None
    space: Callable[[WeightSource], str] | None = None
    licence: str | None = None
    beside: Callable[[WeightSource], list[WeightSource]] | None = None
    reads: tuple[str, ...] = ()


def load_layout(
    layout: Layout, source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Stage:
    """Load a source of this layout.

    Raises:
        ValueError: see :attr:`Layout.load`; always names the file, or one beside it.
    """
    try:
        return layout.load(source, device, dtype)
    except (ValueError, ZeroDivisionError) as error:  # no size is zero in a file that is whole
        if str(source.path.parent) in str(error):
            raise
        raise ValueError(f"{source.path}: {error} (read as: {layout.name})") from error


@dataclass(frozen=True)
class HasKeys:
    """Matches a source that has all of some names."""

    names: tuple[str, ...]

    def __call__(self, source: WeightSource) -> bool:
        return not self.missing(source)

    def missing(self, source: WeightSource) -> list[str]:
        """Those that a source lacks."""
        return [name for name in self.names if name not in source.shapes]


def has_keys(*names: str) -> HasKeys:
    """Matches a source that has all of these names."""
    return HasKeys(names)
