"""Blocked copies of Linear weights: few rows pass a large Linear at the speed of memory on the CPU.

oneDNN multiplies weights in a blocked order. Given the ordinary one, a CPU Linear re-orders them within every
call (bf16), or runs a product made for many rows (fp32); for a handful of rows either costs more than
reading the weights. Packing re-orders them once: what torch.compile does to constant weights, uncompiled.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

PackedWeights = Mapping[nn.Linear, Tensor]

# Rows for which oneDNN chooses the blocking; the copies serve any number.
_TYPICAL_ROWS = 4


@torch.no_grad()
def pack_linears(network: nn.Module) -> PackedWeights:
    """Packed copies of the weights of the Linears of a network on the CPU; empty elsewhere.

    They take as much memory again as the weights, and do not follow later changes of them.
    """
    return {
        module: torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _TYPICAL_ROWS)
        for module in network.modules()
        if isinstance(module, nn.Linear) and _can_pack(module.weight)
    }


def linear(layer: nn.Linear, x: Tensor, packed: PackedWeights | None = None) -> Tensor:
    """``layer(x)``, [..., in] → [..., out], from packed weights where there are some (without gradients)."""
    weight = None if packed is None else packed.get(layer)
    if weight is None:
        return layer(x)
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")


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
    flat = parameter.reshape(-1)
    return flat[:: max(1, flat.numel() // 4)].float()


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # Private operators, found in every torch since 2.1; without them a Linear is as fast as it was.
    ops = torch.ops.mkldnn
    if not all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return hasattr(ops, "_is_mkldnn_bf16_supported") and ops._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
