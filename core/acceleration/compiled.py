"""U-Nets whose calls run through torch.compile: for GPUs, where launching small kernels takes the time."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..networks.dalle2_unet import Dalle2UNet
from ..networks.unet import UNet
from ..networks.unet_pair import UNetPair
from .twins import twin_of

Compiled = UNet | Dalle2UNet | UNetPair

# Each with what it was made of.
_COMPILED: WeakKeyDictionary[nn.Module, tuple[Compiled, dict[str, Any]]] = WeakKeyDictionary()


def compiled_copy(network: Compiled, **options: Any) -> Compiled:
    """A network over the same parameters that computes the same, compiled when it is first called.

    That takes about a minute, again for another batch size, and then for no other: sizes that change are
    compiled as variables. The graph of a U-Net has no breaks.

    Args:
        options: of ``torch.compile``.
    """
    twin: Compiled
    if isinstance(network, UNetPair):
        parts = {"first": network.first, "last": network.last}
        twin = twin_of(network, {name: compiled_copy(part, **options) for name, part in parts.items()})
    else:
        twin = twin_of(network)
        twin.compile(**options)
    _COMPILED[twin] = network, options
    return twin


def is_compiled(network: nn.Module) -> bool:
    """Whether this is a :func:`compiled_copy`."""
    return network in _COMPILED


def compiled_from(network: nn.Module) -> tuple[Compiled, dict[str, Any]] | None:
    """The network and the options that a :func:`compiled_copy` was made of; None of any other."""
    return _COMPILED.get(network)
