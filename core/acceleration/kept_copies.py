"""What is derived from the weights of networks, made once and kept for as long as they stay what they are."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .compiled import is_compiled
from .packed import packed_copy
from .recorded import is_recorded
from .twins import Network

_KEPT: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], dict[Hashable, Any]]] = WeakKeyDictionary()
_PACKED = "packed copy"


def derived(network: nn.Module) -> dict[Hashable, Any]:
    """Room for what was computed from a network's weights alone: empty, and again once they change.

    Nothing in it may hold the network itself, with which it goes.
    """
    fingerprint = weights_fingerprint(network)
    kept = _KEPT.get(network)
    if kept is None or kept[0] != fingerprint:
        _KEPT.pop(network, None)  # its memory goes before more is taken
        kept = _KEPT[network] = (fingerprint, {})
    return kept[1]


def with_packed_weights(network: Network, layers: Collection[type[nn.Module]] | None = None) -> Network:
    """A network's :func:`packed_copy` on the CPU, kept until its weights change; elsewhere the network.

    A compiled network stays as it is too, because the compiler does not see into packed weights, and a
    recorded one, which runs what it has recorded.

    Args:
        layers: types of the layers to pack, None for all. The copy for the last ones is kept.
    """
    if next(network.parameters()).device.type != "cpu" or is_compiled(network) or is_recorded(network):
        return network
    kept = derived(network)
    of_layers, packed = kept.get(_PACKED, (layers, None))
    if packed is None or of_layers != layers:
        kept.pop(_PACKED, None)  # its memory goes before more is taken
        packed = packed_copy(network, layers)
        if packed is network:  # nothing to keep, least of all the network itself
            return network
        kept[_PACKED] = layers, packed
    return packed


def weights_fingerprint(network: nn.Module) -> tuple[object, ...]:
    """A value that, in practice, differs once a parameter was moved, converted, replaced or changed.

    What is derived from a network's weights and kept is keyed by it. It holds the in-place version counters
    and a few values of every parameter, since changes through ``.data`` and of inference tensors are not
    counted.
    """
    parameters = list(network.parameters())
    probes = torch.cat([_probe(parameter.detach()) for parameter in parameters])
    versions = tuple(-1 if parameter.is_inference() else parameter._version for parameter in parameters)
    kinds = tuple((parameter.device, parameter.dtype) for parameter in parameters)
    return versions, kinds, probes.cpu().numpy().tobytes()


def _probe(parameter: Tensor) -> Tensor:
    order = sorted(range(parameter.ndim), key=parameter.stride, reverse=True)
    flat = parameter.permute(order).reshape(-1)  # as it lies in memory, so that nothing is copied
    return flat[:: max(1, flat.numel() // 4)].float()
