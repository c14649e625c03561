"""Blocked copies of weights for the CPU: few rows pass a large Linear at the speed of memory.

oneDNN multiplies weights in a blocked order. Given the ordinary one, a CPU layer re-orders them within every
call (bf16), or runs a product made for many rows (fp32); for a handful of rows, or pixels, either costs more
than reading the weights. Packing re-orders them once: what torch.compile does to constant weights,
uncompiled. Reading them is then what takes a prior's time, so its copies are held in huge pages where the
system has them. A convolution of an upsampled grid becomes one of the small grid, and large ones go by
Winograd's algorithm, both with fewer products.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import copy

import torch
from torch import Tensor, nn

from ..networks.upsampled import UpsampledConv2d, transposed_weight
from .huge_pages import use_huge_pages
from .winograd import WinogradConvolution, pays, suits

PackedWeights = Mapping[nn.Linear, Tensor]

# Rows for which oneDNN chooses the blocking of a prior's weights; the copies serve any number.
_TYPICAL_ROWS = 4

# Layers with fewer weights are left alone by packed_copy: they lie in the cache, where re-ordering is quick.
_WORTHWHILE = 2**18


@torch.no_grad()
def pack_linears(network: nn.Module) -> PackedWeights:
    """Packed copies of the weights of the Linears of a network on the CPU; empty elsewhere.

    They take as much memory again as the weights, and do not follow later changes of them.
    """
    packed = {
        module: torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _TYPICAL_ROWS)
        for module in network.modules()
        if isinstance(module, nn.Linear) and _can_pack(module.weight)
    }
    ops = torch.ops.mkldnn
    if all(hasattr(ops, name) for name in ("data_ptr", "_nbytes")):  # in torch since 2.2
        use_huge_pages((ops.data_ptr(weight), ops._nbytes(weight)) for weight in packed.values())
    return packed


def linear(layer: nn.Linear, x: Tensor, packed: PackedWeights | None = None) -> Tensor:
    """``layer(x)``, [..., in] → [..., out], from packed weights where there are some (without gradients)."""
    weight = None if packed is None else packed.get(layer)
    if weight is None:
        return layer(x)
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")


def packed_copy(network: nn.Module, layers: Collection[type[nn.Module]] | None = None) -> nn.Module:
    """A network over the same parameters whose large convolutions and Linears on the CPU have packed weights.

    It computes the same, without gradients. It packs at its first call, and again where the shape of the
    input changes; it does not follow changes of the weights, and takes as much memory again as they do: 16/9
    of that for a convolution of an upsampled grid, which is packed whatever its size, and for one that is
    computed by ``winograd``, as all are that gain by it. Where there is nothing to pack it is the network
    itself.

    Args:
        layers: types of the layers to pack: Conv2d, Linear, UpsampledConv2d. None for all.
    """
    kind = type(network)
    if kind in _PACKED_LAYERS:
        if not _can_pack(network.weight):
            return network
        wanted = layers is None or kind in layers
        worthwhile = kind is UpsampledConv2d or network.weight.numel() >= _WORTHWHILE
        layer = _PACKED_LAYERS[kind](network) if wanted and worthwhile else network
        return _WinogradConv2d(network, layer) if kind is nn.Conv2d and suits(network) else layer
    children = {name: packed_copy(child, layers) for name, child in network.named_children()}
    if all(child is network._modules[name] for name, child in children.items()):
        return network
    twin = copy(network)
    twin._modules = network._modules | children
    return twin


class _PackedFor:
    """The weights of a layer, packed for the shape of its input, and anew when that changes.

    Which blocking is fast depends on it: with that of another shape, a layer can take fifty times as long.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, pack: Callable[[Tensor, torch.Size], Tensor]) -> None:
        self._layer, self._pack = layer, pack
        self._packed: Tensor | None = None
        self._shape: torch.Size | None = None

    def __call__(self, shape: torch.Size) -> Tensor:
        if shape != self._shape:
            self._packed = None  # its memory goes before more is taken
            self._packed, self._shape = self._pack(self._layer.weight.detach(), shape), shape
        return self._packed


class _PackedConv2d(nn.Module):
    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.geometry = layer.padding, layer.stride, layer.dilation, layer.groups
        self.weight = _PackedFor(layer, self._pack)
        self.bias = layer.bias

    def _pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, list(shape))

    def forward(self, x: Tensor) -> Tensor:
        conv = torch.ops.mkldnn._convolution_pointwise
        return conv(x, self.weight(x.shape), self.bias, *self.geometry, "none", [], "")


class _WinogradConv2d(nn.Module):
    """A convolution by ``winograd`` where its input is large enough, else by the layer, packed or not."""

    def __init__(self, layer: nn.Conv2d, otherwise: nn.Module) -> None:
        super().__init__()
        self.convolution = WinogradConvolution(layer)
        self.otherwise, self.copied = otherwise, otherwise is not layer

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x) if pays(x, self.copied) else self.otherwise(x)


class _PackedUpsampledConv2d(nn.Module):
    # Of the transposed convolution: padding, output padding, stride, dilation, groups.
    _GEOMETRY = (1, 1), (0, 0), (2, 2), (1, 1), 1

    def __init__(self, layer: UpsampledConv2d) -> None:
        super().__init__()
        self.weight = _PackedFor(layer, self._pack)
        self.bias = layer.bias

    @classmethod
    def _pack(cls, weight: Tensor, shape: torch.Size) -> Tensor:
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        return reorder(transposed_weight(weight), *cls._GEOMETRY, list(shape))

    def forward(self, x: Tensor) -> Tensor:
        conv = torch.ops.mkldnn._convolution_transpose_pointwise
        return conv(x, self.weight(x.shape), self.bias, *self._GEOMETRY, "none", [], "")


class _PackedLinear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = _PackedFor(layer, self._pack)
        self.bias = layer.bias

    @staticmethod
    def _pack(weight: Tensor, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, shape[:-1].numel())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight(x.shape), self.bias, "none", [], "")


_PACKED_LAYERS = {
    nn.Conv2d: _PackedConv2d,
    nn.Linear: _PackedLinear,
    UpsampledConv2d: _PackedUpsampledConv2d,
}


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


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # Private operators, found in every torch since 2.1; without them a layer is as fast as it was.
    ops = torch.ops.mkldnn
    names = (
        "_reorder_linear_weight",
        "_linear_pointwise",
        "_reorder_convolution_weight",
        "_convolution_pointwise",
        "_reorder_convolution_transpose_weight",
        "_convolution_transpose_pointwise",
    )
    if not all(hasattr(ops, name) for name in names):
        return False
    if weight.dtype == torch.bfloat16:
        return hasattr(ops, "_is_mkldnn_bf16_supported") and ops._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32
