"""Blocked copies of Linear weights: few rows through a large Linear at the speed of memory, in bf16 on the CPU.

oneDNN multiplies bf16 in a blocked order of the weights. From the ordinary order it re-orders them within every
call, which for a handful of rows costs more than the product itself; packing does that once. It is what
torch.compile does to constant weights, without compiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PackedWeights = Mapping[nn.Linear, Tensor]

NOT_PACKED: PackedWeights = MappingProxyType({})

# Rows for which oneDNN chooses the blocking; the copies serve any number.
_TYPICAL_ROWS = 4


@torch.no_grad()
def pack_linears(network: nn.Module) -> PackedWeights:
    """Packed copies of the weights of every bf16 Linear of a network on the CPU; empty where that gains nothing.

    They take as much memory again as the weights, and do not follow later changes of them.
    """
    if not _can_pack():
        return NOT_PACKED
    return {
        module: torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _TYPICAL_ROWS)
        for module in network.modules()
        if isinstance(module, nn.Linear)
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
    }


def linear(layer: nn.Linear, x: Tensor, packed: PackedWeights = NOT_PACKED) -> Tensor:
    """``layer(x)``, [..., in] → [..., out], from packed weights where there are some (without gradients)."""
    weight = packed.get(layer)
    if weight is None:
        return F.linear(x, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")


def weights_fingerprint(network: nn.Module) -> tuple[object, ...]:
    """A value that differs, in practice, once any parameter was moved, converted, replaced or changed in place.

    What is derived from a network's weights and kept is keyed by it. It holds the in-place version counters and
    a few values of every parameter: changes through ``.data`` do not count, and inference tensors have no counter.
    """
    parameters = list(network.parameters())
    probes = [_probe(parameter.detach()) for parameter in parameters]
    values = torch.cat(probes).cpu() if probes else torch.empty(0)
    versions = tuple(-1 if p.is_inference() else p._version for p in parameters)
    kinds = tuple((p.device, p.dtype) for p in parameters)
    return versions, kinds, values.numpy().tobytes()


def _probe(parameter: Tensor) -> Tensor:
    flat = parameter.reshape(-1)
    return flat[:: max(1, flat.numel() // 4)].float()


def _can_pack() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # Private operators, present in every torch since 2.1; where they are not, Linear is as fast as it was.
    ops = torch.ops.mkldnn
    return (
        all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and hasattr(ops, "_is_mkldnn_bf16_supported")
        and ops._is_mkldnn_bf16_supported()
    )
