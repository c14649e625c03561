"""Blocked copies of weights for the CPU: few rows pass a large Linear at the speed of memory.

oneDNN multiplies weights in a blocked order. Given the ordinary one, a CPU layer re-orders them within every
call (bf16), or runs a product made for many rows (fp32); for a handful of rows, or pixels, either costs more
than reading the weights. Packing re-orders them once: what torch.compile does to constant weights,
uncompiled. Reading them is then what takes a prior's time, so the copies of Linears are held in huge pages
where the system has them. A convolution of an upsampled grid becomes one of the small grid, and large ones
go by Winograd's algorithm, both with fewer products.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..networks.upsampled import UpsampledConv2d, transposed_weight
from .huge_pages import use_huge_pages
from .twins import Network, twin_of
from .winograd import WinogradConvolution, pays, suits

# Rows for which oneDNN chooses the blocking of a Linear's weights; the copies serve any number.
_TYPICAL_ROWS = 4

# Convolutions with fewer weights are left alone: they lie in the cache, where re-ordering is quick.
_WORTHWHILE = 2**18


@torch.no_grad()
def packed_copy(network: Network, layers: Collection[type[nn.Module]] | None = None) -> Network:
    """A network over the same parameters whose Linears and large convolutions on the CPU have packed weights.

    It computes the same; where a gradient is asked for, its layers run the network's own, which alone have
    one. Linears are packed here, convolutions at their first call, and again where the shape of the input
    changes. It does not follow changes of the weights, and takes as much memory again as they do: 16/9 of
    that for a convolution of an upsampled grid, which is packed whatever its size, and for one that is
    computed by ``winograd``, as all are that gain by it. Where there is nothing to pack it is the network
    itself.

    Args:
        layers: types of the layers to pack: Conv2d, Linear, UpsampledConv2d. None for all.
    """
    twin = cast(Network, _packed(network, layers))  # a layer's has the type of the layer to whoever calls it
    linears = [layer.weight for layer in twin.modules() if isinstance(layer, _PackedLinear)]
    ops = torch.ops.mkldnn
    if all(hasattr(ops, name) for name in ("data_ptr", "_nbytes")):  # in torch since 2.2
        use_huge_pages((ops.data_ptr(weight), ops._nbytes(weight)) for weight in linears)
    return twin


def _packed(network: nn.Module, layers: Collection[type[nn.Module]] | None) -> nn.Module:
    if type(network) in _PACKED_LAYERS:
        return _packed_layer(network, layers)
    children = {name: _packed(child, layers) for name, child in network.named_children()}
    changed = any(child is not network._modules[name] for name, child in children.items())
    return twin_of(network, children) if changed else network


def _packed_layer(layer: Any, layers: Collection[type[nn.Module]] | None) -> nn.Module:
    kind = type(layer)
    if not _can_pack(layer.weight):
        return layer
    wanted = layers is None or kind in layers
    worthwhile = kind is not nn.Conv2d or layer.weight.numel() >= _WORTHWHILE
    packed = _PACKED_LAYERS[kind](layer) if wanted and worthwhile else layer
    return _WinogradConv2d(layer, packed) if kind is nn.Conv2d and suits(layer) else packed


class _PackedFor:
    """The weights of a convolution, packed for the shape of its input, and anew when that changes.

    Which blocking is fast depends on it: with that of another shape, a layer can take fifty times as long.
    """

    def __init__(self, layer: nn.Conv2d, pack: Callable[[Tensor, torch.Size], Tensor]) -> None:
        self._layer, self._pack = layer, pack
        self._packed: Tensor | None = None
        self._shape: torch.Size | None = None

    def __call__(self, shape: torch.Size) -> Tensor:
        if self._packed is None or shape != self._shape:
            self._packed = None  # its memory goes before more is taken
            self._packed, self._shape = self._pack(self._layer.weight.detach(), shape), shape
        return self._packed


class _Packed(nn.Module):
    """A layer run by packed weights, or by itself where a gradient is asked for.

    oneDNN's operators have none, and would leave out what passes through them without a word.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._plain = (layer,)  # no child: its weights are the network's

    def forward(self, x: Tensor) -> Tensor:
        (plain,) = self._plain
        if torch.is_grad_enabled() and (x.requires_grad or cast(Tensor, plain.weight).requires_grad):
            return cast(Tensor, plain(x))
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _PackedConv2d(_Packed):
    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.geometry = layer.padding, layer.stride, layer.dilation, layer.groups
        self.weight = _PackedFor(layer, self._pack)
        self.bias = layer.bias

    def _pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, list(shape))

    def _run(self, x: Tensor) -> Tensor:
        conv = torch.ops.mkldnn._convolution_pointwise
        return conv(x, self.weight(x.shape), self.bias, *self.geometry, "none", [], "")


class _WinogradConv2d(_Packed):
    """A convolution by ``winograd`` where its input is large enough, else by the layer, packed or not."""

    def __init__(self, layer: nn.Conv2d, otherwise: nn.Module) -> None:
        super().__init__(layer)
        self.convolution = WinogradConvolution(layer)
        self.otherwise, self.copied = otherwise, otherwise is not layer

    def _run(self, x: Tensor) -> Tensor:
        return self.convolution(x) if pays(x, self.copied) else self.otherwise(x)


class _PackedUpsampledConv2d(_Packed):
    # Of the transposed convolution: padding, output padding, stride, dilation, groups.
    _GEOMETRY = (1, 1), (0, 0), (2, 2), (1, 1), 1

    def __init__(self, layer: UpsampledConv2d) -> None:
        super().__init__(layer)
        self.weight = _PackedFor(layer, self._pack)
        self.bias = layer.bias

    @classmethod
    def _pack(cls, weight: Tensor, shape: torch.Size) -> Tensor:
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        return reorder(transposed_weight(weight), *cls._GEOMETRY, list(shape))

    def _run(self, x: Tensor) -> Tensor:
        conv = torch.ops.mkldnn._convolution_transpose_pointwise
        return conv(x, self.weight(x.shape), self.bias, *self._GEOMETRY, "none", [], "")


class _PackedLinear(_Packed):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _TYPICAL_ROWS)
        self.bias = layer.bias

    def _run(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


_PACKED_LAYERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv2d: _PackedConv2d,
    nn.Linear: _PackedLinear,
    UpsampledConv2d: _PackedUpsampledConv2d,
}


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
