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


def twin_with_own_modules(network: Network) -> Network:
    """A network that shares every parameter with another, in modules of its own: one that is replaced in it
    stays what it was in the other."""
    parts = {name: twin_with_own_modules(part) for name, part in network._modules.items() if part is not None}
    twin = twin_of(network, parts)
    twin._parameters, twin._buffers = dict(network._parameters), dict(network._buffers)
    return twin
