"""What several networks share: the sinusoidal timestep embedding and the attention call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


class Stack(nn.ModuleList, Generic[Layer]):
    """A ModuleList of which type checkers know what is in it."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Layer]: ...

        @overload
        def __getitem__(self, idx: slice) -> Stack[Layer]: ...

        @overload
        def __getitem__(self, idx: int) -> Layer: ...

        def __getitem__(self, idx: int | slice) -> Layer | Stack[Layer]: ...


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) timesteps: cosines first, then sines.

    Attention Is All You Need (1706.03762) section 3.5, with frequencies ω_k = max_period^(−k/half) and the
    order of halves of guided-diffusion's `nn.py`, which GLIDE, Karlo and Kandinsky share.

    Args:
        t: timesteps [B], integer or float, in units of training steps.
        dim: width of the embedding; when odd, the last column is zero.
        max_period: longest wavelength divided by 2π.

    Returns:
        [B, dim] float32 on the device of `t`.

    Raises:
        ValueError: when `t` is not one-dimensional or `dim` is smaller than 2.
    """
    if t.ndim != 1:
        raise ValueError(
            f"timestep_embedding: t must be [B], found shape {list(t.shape)}; pass one step a row"
        )
    if dim < 2:
        raise ValueError(f"timestep_embedding: dim must be at least 2, found {dim}")
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.to(torch.float32)[:, None] * torch.exp(-math.log(max_period) * exponent)[None, :]  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim - 2 * half))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of [B, H, N, C] queries over [B, H, M, C] keys; returns [B, N, H·C].

    `mask` is boolean (True: attend) or additive, and broadcasts to [B, H, N, M].
    """
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h n c -> b n (h c)")
