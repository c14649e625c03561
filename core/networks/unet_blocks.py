"""The parts of the U-Net: residual blocks, resampling, and attention that context tokens join.

Sources: ADM (2105.05233) and GLIDE (2112.10741); as code, guided-diffusion's `unet.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .unet_config import GROUPS
from .upsampled import UpsampledConv2d, doubled

if TYPE_CHECKING:
    from .unet_config import UNetConfig


Context = tuple[Tensor, Tensor]
"""Keys and values [B, heads, N, head_dim] of the context tokens in one attention block."""


class Block(nn.Module):
    """A residual block, then attention, then upsampling, as far as each is there."""

    def __init__(
        self, config: UNetConfig, inputs: int, outputs: int, attention: bool = False, upsample: bool = False
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, config.embedding_dim, config.film)
        self.attention = Attention(outputs, config.head_dim, config.context_dim) if attention else None
        self.upsample = Upsample(config, outputs) if upsample else None

    def forward(
        self, h: Tensor, embedding: Tensor, context: Iterator[Context] | None, mask: Tensor | None
    ) -> Tensor:
        """h [B, inputs, H, W] → [B, outputs, H, W], twice the size with upsampling.

        ``context`` yields keys and values in the order of the blocks with attention; None without context.
        """
        h = self.residual(h, embedding)
        if self.attention is not None:
            h = self.attention(h, next(context) if context is not None else None, mask)
        return h if self.upsample is None else self.upsample(h, embedding)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the embedding in between (ADM, section 3).

    FiLM is ADM's adaptive group normalisation; a ``scale`` of 0.5 or 2 resamples inside the block.
    """

    def __init__(self, inputs: int, outputs: int, embedding_dim: int, film: bool, scale: float = 1) -> None:
        super().__init__()
        self.film, self.scale = film, scale
        self.norm_in = nn.GroupNorm(GROUPS, inputs)
        self.conv_in: nn.Conv2d
        if scale == 2:
            self.conv_in = UpsampledConv2d(inputs, outputs)
        else:
            self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, outputs * (2 if film else 1))
        self.norm_out = nn.GroupNorm(GROUPS, outputs)
        self.conv_out = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, inputs, H, W] and the activated embedding [B, E] → [B, outputs, scale·H, scale·W]."""
        h = silu(self.norm_in(x))
        if self.scale == 0.5:  # ADM resamples between the activation and the convolution
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.scale == 2:
            x = doubled(x)
        h = self.conv_in(h)  # with a scale of 2 it doubles h itself
        modulation = self.embedding(embedding)[:, :, None, None]  # [B, outputs or 2·outputs, 1, 1]
        if self.film:
            gain, shift = modulation.chunk(2, dim=1)
            h = silu(_plus(_times(self.norm_out(h), 1 + gain), shift))
        else:
            h = silu(self.norm_out(_plus(h, modulation)))
        return _plus(self.conv_out(h), self.skip(x))


class Downsample(nn.Module):
    """Halves the grid: a residual block over average pooling, or a strided convolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.in_block = config.resample_in_block
        if self.in_block:
            self.residual = ResidualBlock(channels, channels, config.embedding_dim, config.film, scale=0.5)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, embedding: Tensor, context: object = None, mask: object = None) -> Tensor:
        return self.residual(h, embedding) if self.in_block else self.conv(h)


class Upsample(nn.Module):
    """Doubles the grid: a residual block over nearest neighbours, or nearest neighbours and a convolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.in_block = config.resample_in_block
        if self.in_block:
            self.residual = ResidualBlock(channels, channels, config.embedding_dim, config.film, scale=2)
        else:
            self.conv = UpsampledConv2d(channels, channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.residual(h, embedding) if self.in_block else self.conv(h)


class Attention(nn.Module):
    """Self-attention over the grid; context tokens join its keys and values (GLIDE, section 2.3).

    ``qkv`` gives all queries, then all keys, then all values; ``context_kv`` all keys, then all values.
    """

    def __init__(self, channels: int, head_dim: int, context_dim: int | None) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels cannot be split into attention heads of {head_dim}")
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context_kv = nn.Linear(context_dim, 2 * channels) if context_dim is not None else None
        self.out = zeroed(nn.Linear(channels, channels))

    def context(self, tokens: Tensor) -> Context:
        """[B, N, C] context tokens → keys and values [B, heads, N, head_dim]."""
        assert self.context_kv is not None
        k, v = rearrange(self.context_kv(tokens), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return k, v

    def forward(self, x: Tensor, context: Context | None, mask: Tensor | None) -> Tensor:
        """x [B, C, H, W] attends to itself and to tokens, valid where ``mask`` [B, 1, 1, N] is True."""
        height, width = x.shape[-2:]
        h = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(h), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if context is not None:
            k = torch.cat([context[0], k], dim=2)  # [B, heads, N + HW, head_dim]
            v = torch.cat([context[1], v], dim=2)
            if mask is not None:
                mask = F.pad(mask, (0, height * width), value=True)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if context is not None else None)
        h = self.out(rearrange(h, "b h n d -> b n (h d)"))
        return _plus(rearrange(h, "b (h w) c -> b c h w", h=height), x)


# --- elementwise functions of a fresh result: in place where no gradient is taken ---
# Large results come in memory that the system hands out anew each time, which on the CPU costs several times
# as much as the function itself.


def silu(h: Tensor) -> Tensor:
    return F.silu(h, inplace=not torch.is_grad_enabled())


def _plus(h: Tensor, other: Tensor) -> Tensor:
    return h.add_(other) if _in_place(h, other) else h + other


def _times(h: Tensor, other: Tensor) -> Tensor:
    return h.mul_(other) if _in_place(h, other) else h * other


def _in_place(h: Tensor, other: Tensor) -> bool:
    return h.dtype == other.dtype and not torch.is_grad_enabled()  # autocast mixes types


def zeroed(module: nn.Module) -> nn.Module:
    """Zero-initialised, so that every block starts as the identity (ADM)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
