"""A network with other weights that is as fast as the first: compiled and recorded where that one was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .compiled import compiled_copy, compiled_from
from .recorded import recorded_copy, recorded_from


def remade(network: Any, change: Callable[[Any], nn.Module]) -> Any:
    """``change`` of the plain network that a compiled or recorded one was made of, made the same way again.

    A copy of a compiled or recorded network with other weights would still run the old ones.
    """
    if (plain := recorded_from(network)) is not None:
        return recorded_copy(remade(plain, change))
    if (compiled := compiled_from(network)) is not None:
        plain, options = compiled
        return compiled_copy(remade(plain, change), **options)
    return change(network)
