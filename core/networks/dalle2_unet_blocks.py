"""The parts of DALLE2-pytorch's U-Nets: residual blocks that read a context, attention, shrinking, growing.

Source: lucidrains/DALLE2-pytorch, `dalle2_pytorch.py` (`Block`, `ResnetBlock`, `CrossAttention`, `Attention`,
`LinearAttention`, `CrossEmbedLayer`, `Downsample`, `PixelShuffleUpsample`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .dalle2_blocks import COSINE_SCALE, GainNorm
from .dalle2_unet_config import Dalle2UNetConfig, Grow, Shrink
from .layers import Stack


class ConvBlock(nn.Module):
    """Convolution, GroupNorm, and, where there is one, a modulation; then SiLU."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        h = self.norm(self.conv(x))
        return F.silu(h if scale is None or shift is None else h * (scale + 1) + shift)


class CrossAttention(nn.Module):
    """Places [B, N, D] attend to context tokens [B, M, C] and a learned one."""

    def __init__(self, config: Dalle2UNetConfig, dim: int) -> None:
        super().__init__()
        self.heads, head_dim = config.cross_heads, config.cross_head_dim
        inner = self.heads * head_dim
        self.cosine = config.cosine_cross
        self.scale = COSINE_SCALE if self.cosine else head_dim**-0.5
        self.norm = GainNorm(dim)
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(config.context_dim, 2 * inner, bias=False)
        self.null_kv = nn.Parameter(torch.zeros(2, head_dim))
        self.out = nn.Linear(inner, dim, bias=False)
        self.norm_out = GainNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(self.q(self.norm(x)), "b n (h c) -> b h n c", h=self.heads)
        k, v = rearrange(self.kv(context), "b m (two h c) -> two b h m c", two=2, h=self.heads)
        return self.norm_out(self.out(_attend(q, k, v, self.null_kv, self.cosine, self.scale)))


class SelfAttention(nn.Module):
    """Places [B, N, D] attend to each other and to a learned one; all heads share keys and values."""

    def __init__(self, config: Dalle2UNetConfig, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.cosine = config.cosine_self
        self.scale = COSINE_SCALE if self.cosine else config.head_dim**-config.self_scale
        self.norm = GainNorm(dim)
        self.q = nn.Linear(dim, config.heads * config.head_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * config.head_dim, bias=False)
        self.null_kv = nn.Parameter(torch.zeros(2, config.head_dim))
        self.out = nn.Linear(config.heads * config.head_dim, dim, bias=False)
        self.norm_out = GainNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] → [B, D, H, W], added to it."""
        places = rearrange(x, "b d h w -> b (h w) d")
        h = self.norm(places)
        q = rearrange(self.q(h), "b n (h c) -> b h n c", h=self.heads)
        k, v = rearrange(self.kv(h), "b n (two c) -> two b 1 n c", two=2)
        h = self.norm_out(self.out(_attend(q, k, v, self.null_kv, self.cosine, self.scale)))
        return x + rearrange(h, "b (h w) d -> b d h w", h=x.shape[2])


def _attend(q: Tensor, k: Tensor, v: Tensor, null: Tensor, cosine: bool, scale: float) -> Tensor:
    """[B, H, N, C] over [B, H or 1, M, C] and the null key and value [2, C] → [B, N, H·C]."""
    shape = (len(k), k.shape[1], 1, k.shape[3])
    k = torch.cat([null[0].expand(shape), k], dim=2)
    v = torch.cat([null[1].expand(shape), v], dim=2)
    if cosine:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    shared = (q.shape[0], q.shape[1], k.shape[2], k.shape[3])
    h = F.scaled_dot_product_attention(q, k.expand(shared), v.expand(shared), scale=scale)
    return rearrange(h, "b h n c -> b n (h c)")


class ChannelNorm(nn.Module):
    """LayerNorm of the channels of each place, without a bias, in full precision."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = GainNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class LinearAttention(nn.Module):
    """Attention in linear time (2006.16236; softmax of queries over channels and of keys over places)."""

    def __init__(self, config: Dalle2UNetConfig, dim: int) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, config.head_dim**-0.5
        self.normalised = config.normalised_values
        inner = config.heads * config.head_dim
        self.norm = ChannelNorm(dim)
        self.qkv = nn.Conv2d(dim, 3 * inner, 1, bias=False)
        self.out = nn.Conv2d(inner, dim, 1, bias=False)
        self.norm_out = ChannelNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] → [B, D, H, W], added to it."""
        height, width = x.shape[2:]
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b (three h c) y x -> three b h (y x) c", three=3, h=self.heads
        )
        q, k = q.softmax(dim=-1) * self.scale, k.softmax(dim=-2)
        if self.normalised:
            v = F.normalize(v, dim=-1)
            k, v = (each / math.sqrt(height * width) for each in (k, v))
        h = q @ (k.transpose(-1, -2) @ v)  # [B, H, N, C]
        h = F.gelu(rearrange(h, "b h (y x) c -> b (h c) y x", y=height))
        return x + self.norm_out(self.out(h))


class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the embedding; between them, the places read the context."""

    def __init__(
        self, config: Dalle2UNetConfig, inputs: int, outputs: int, groups: int, cross: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(config.embedding_dim, 2 * outputs)
        self.first = ConvBlock(inputs, outputs, groups)
        self.cross = CrossAttention(config, outputs) if cross else None
        self.second = ConvBlock(outputs, outputs, groups)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """x [B, I, H, W], embedding [B, E] already activated, context [B, M, C] → [B, O, H, W]."""
        scale, shift = self.embed(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.first(x, scale, shift)
        if self.cross is not None:
            places = self.cross(rearrange(h, "b d h w -> b (h w) d"), context)
            h = h + rearrange(places, "b (h w) d -> b d h w", h=h.shape[2])
        return self.second(h) + self.skip(x)


class Kernels(nn.Module):
    """Convolutions of several kernels beside each other, the smaller ones with more channels."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        shares = [outputs // 2 ** (n + 1) for n in range(len(kernels) - 1)]
        shares.append(outputs - sum(shares))
        self.convs: Stack[nn.Conv2d] = Stack(
            nn.Conv2d(inputs, share, kernel, stride=stride, padding=(kernel - stride) // 2)
            for kernel, share in zip(sorted(kernels), shares, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=1)


class Shrunk(nn.Module):
    """Half the side, see ``Dalle2UNetConfig.shrink``."""

    def __init__(self, kind: Shrink, inputs: int, outputs: int) -> None:
        super().__init__()
        self.unshuffle = kind == "shuffle"
        if kind == "kernels":
            self.conv: nn.Module = Kernels(inputs, outputs, (2, 4), stride=2)
        elif kind == "convolution":
            self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(4 * inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(x, 2) if self.unshuffle else x)


class Grown(nn.Module):
    """Twice the side, see ``Dalle2UNetConfig.grow``."""

    def __init__(self, kind: Grow, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shuffle = kind == "shuffle"
        self.conv = (
            nn.Conv2d(inputs, 4 * outputs, 1) if self.shuffle else nn.Conv2d(inputs, outputs, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.shuffle:
            return F.pixel_shuffle(F.silu(self.conv(x)), 2)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
