"""A 3×3 convolution of an upsampled grid as one layer, so that it can be computed without upsampling.

Nearest neighbours repeat every value: of the nine that each output reads, four differ. With the weights of
equal ones added up beforehand it is a transposed convolution of the small grid, with a kernel of 4×4 and a
stride of 2, and each output takes four products.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution: [B, inputs, H, W] → [B, outputs, 2H, 2W].

    Its parameters are those of the convolution. It computes one after the other; who only samples may compute
    the transposed convolution instead, see :func:`transposed_weight`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(doubled(x))


def doubled(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, C, 2H, 2W] by nearest neighbours."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def transposed_weight(weight: Tensor) -> Tensor:
    """The weight of the transposed convolution, of stride 2 and padding 1, that an UpsampledConv2d is.

    [outputs, inputs, 3, 3] → [inputs, outputs, 4, 4]. In each direction, value i of the small grid reaches
    output 2i − 1 + u through the weights 2 − u and 3 − u, as far as there are any. They are added in float32.
    """
    pairs = F.avg_pool2d(weight.float(), 2, stride=1, padding=1, divisor_override=1)  # sums, zeros outside
    return pairs.flip(2, 3).transpose(0, 1).to(weight.dtype)
