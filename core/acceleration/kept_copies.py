"""Packed copies of networks, made once and kept for as long as the weights stay what they are."""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakKeyDictionary

from torch import nn

from .compiled import is_compiled
from .packed import packed_copy, weights_fingerprint

_PACKED: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], nn.Module]] = WeakKeyDictionary()


def with_packed_weights(network: nn.Module, layers: Collection[type[nn.Module]] | None = None) -> nn.Module:
    """A network's :func:`packed_copy` on the CPU, kept until its weights change; elsewhere the network.

    A compiled network stays as it is too, because the compiler does not see into packed weights.

    Args:
        layers: types of the layers to pack, None for all. The copy for the last ones is kept.
    """
    if next(network.parameters()).device.type != "cpu" or is_compiled(network):
        return network
    fingerprint = (layers, *weights_fingerprint(network))
    kept = _PACKED.get(network)
    if kept is None or kept[0] != fingerprint:
        _PACKED.pop(network, None)  # its memory goes before more is taken
        packed = packed_copy(network, layers)
        if packed is network:  # nothing to keep, least of all the network itself
            return network
        kept = _PACKED[network] = (fingerprint, packed)
    return kept[1]
