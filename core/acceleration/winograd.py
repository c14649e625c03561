"""3×3 convolutions on the CPU with fewer products: Winograd's F(2×2, 3×3) (Lavin and Gray, 1509.09308).

Four outputs Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A take 16 products of transformed weights g and of the 4×4 inputs d
that they read, instead of 36; the transforms are sums. Each of the 16 is one matrix product over all tiles of
a strip of the picture. Processors that multiply matrices faster than memory brings them (AMX) gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of one strip, transformed; what fits into the caches is summed at their speed.
_STRIP_BYTES = 16 * 2**20
_TYPICAL_ROWS = 1024  # of a product, for which the blocking of the weights is chosen
# With fewer channels, or fewer tiles, the sums take as long as the products that they save.
_CHANNELS, _TILES = 256, 128
# With fewer tiles the time that is saved is not worth a copy of the weights that would else not be there.
_TILES_FOR_A_COPY = 1024
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def suits(layer: nn.Conv2d) -> bool:
    """Whether this is a 3×3 convolution of many channels, on a processor where products take the time."""
    geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return (
        geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
        and _products_are_slow(layer.weight.dtype)
    )


def pays(x: Tensor, copied: bool) -> bool:
    """Whether inputs [B, C, H, W] are large enough, and cut into whole tiles of 2×2.

    Args:
        copied: the layer's weights are copied anyway.
    """
    batch, _, height, width = x.shape
    tiles = batch * height * width // 4
    return height % 2 == width % 2 == 0 and tiles >= (_TILES if copied else _TILES_FOR_A_COPY)


@cache
def _products_are_slow(dtype: torch.dtype) -> bool:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    return dtype == torch.float32 or not has_amx()


def transformed_weight(weight: Tensor) -> Tensor:
    """G g Gᵀ in float32, [outputs, inputs, 3, 3] → [4, 4, outputs, inputs]."""
    outputs, inputs = weight.shape[:2]
    g = weight.new_tensor(_G, dtype=torch.float32)
    flat = weight.permute(2, 3, 0, 1).reshape(9, outputs * inputs).float()
    return (torch.kron(g, g) @ flat).view(4, 4, outputs, inputs)


class WinogradConvolution:
    """A layer that :func:`suits`, for inputs for which it :func:`pays`, without gradients.

    At the first call its weights are copied, transformed and packed: 16/9 of their memory. It computes in
    their type, and rounds once more in each sum.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._weights: list[list[Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] → [B, outputs, H, W], channels last."""
        if not self._weights:
            self._pack()
        batch, inputs, height, width = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # [B, H + 2, W + 2, inputs]
        y = x.new_empty(batch, height, width, self._layer.out_channels)
        rows = self._rows(inputs, height, width, x.element_size())
        tiles = x.new_empty(4, 4, rows, width // 2, inputs)
        halves = x.new_empty(rows, width + 2, inputs)
        for picture, top, bottom in _strips(batch, height // 2, rows):
            count = bottom - top
            strip = padded[picture, 2 * top : 2 * bottom + 2]
            _transform(strip, halves[:count], tiles[:, :, :count])
            self._multiply(tiles[:, :, :count], y[picture, 2 * top : 2 * bottom])
        return y.permute(0, 3, 1, 2)

    def _pack(self) -> None:
        weight = transformed_weight(self._layer.weight.detach())
        weight[3].neg_()  # A only subtracts what its products give, and to add comes with the product
        self._weights = [[_packed(each) for each in row] for row in weight.to(self._layer.weight.dtype)]

    def _rows(self, inputs: int, height: int, width: int, size: int) -> int:
        """Rows of tiles in a strip."""
        row = 16 * (width // 2) * inputs * size
        return max(1, min(height // 2, _STRIP_BYTES // row))

    def _multiply(self, tiles: Tensor, y: Tensor) -> None:
        """Tiles Bᵀ d B [4, 4, R, T, inputs] → y [2R, 2T, outputs]."""
        shape = (*tiles.shape[2:4], self._layer.out_channels)
        flat = [[each.flatten(0, 1) for each in row] for row in tiles]
        upper, lower = [], []  # of the two rows of outputs, [R, T, outputs] for each column of tiles
        for column in range(4):
            weights = [row[column] for row in self._weights]
            bias = self._layer.bias if column == 1 else None  # which enters every output once
            first = _linear(flat[1][column], weights[1], bias)
            second = _linear(flat[2][column], weights[2])
            difference = first - second
            total = first.add_(second)
            upper.append(_linear_added(flat[0][column], weights[0], total).view(shape))
            lower.append(_linear_added(flat[3][column], weights[3], difference).view(shape))
        for parity, (a, b, c, d) in enumerate((upper, lower)):
            row = y[parity::2]
            torch.add(a.add_(b), c, out=row[:, 0::2])
            torch.sub(b.sub_(c), d, out=row[:, 1::2])


def _strips(batch: int, tile_rows: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Picture, first row of tiles and the one behind the last."""
    for picture in range(batch):
        for top in range(0, tile_rows, rows):
            yield picture, top, min(top + rows, tile_rows)


# Rows of Bᵀ: a sum or difference of two of four neighbours.
_B = ((torch.sub, 0, 2), (torch.add, 1, 2), (torch.sub, 2, 1), (torch.sub, 1, 3))


def _transform(strip: Tensor, halves: Tensor, tiles: Tensor) -> None:
    """Bᵀ d B of all tiles of a padded strip [2R + 2, 2T + 2, C] into ``tiles`` [4, 4, R, T, C].

    ``halves`` [R, 2T + 2, C] is room for Bᵀ d.
    """
    down = [strip[k : k + 2 * tiles.shape[2] - 1 : 2] for k in range(4)]
    across = [halves[:, k : k + 2 * tiles.shape[3] - 1 : 2] for k in range(4)]
    for row, (combine, one, other) in enumerate(_B):
        combine(down[one], down[other], out=halves)
        for column, (combine_too, left, right) in enumerate(_B):
            combine_too(across[left], across[right], out=tiles[row, column])


# --- products, with the packed weights of ``packed`` ---


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _linear_added(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """x·weightᵀ + other, rounded once."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
