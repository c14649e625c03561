"""Twins of networks: the same parameters, computed with in another way."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def twin_of(network: Network, parts: Mapping[str, nn.Module] | None = None) -> Network:
    """A network that shares everything with another, except for the parts (its children by name) given."""
    twin = copy(network)
    if parts:
        twin._modules = {**network._modules, **parts}
    return twin
