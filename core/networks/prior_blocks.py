"""What the priors share: the transformer block, its initial weights, and how captions enter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import attention
from .sizes import require_sizes


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP (exact GELU). ``qkv`` gives all queries, then all keys, then values."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, N, W] → queries [B, H, N, C], and keys and values [2, B, H, N, C]."""
        qkv = self.qkv(self.attention_norm(x))
        qkv = rearrange(qkv, "b n (three h c) -> three b h n c", three=3, h=self.heads)
        return qkv[0], qkv[1:]

    def finish(self, x: Tensor, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """x [B, N, W] after attention of its queries [B, H, N, C] over kv [2, B, H, M, C], and the MLP."""
        x = x + self.attention_out(attention(q, kv[0], kv[1], mask))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.finish(x, *self.project(x), mask)


def initialise(blocks: Iterable[Block], positions: Tensor) -> None:
    """The initial weights of CLIP's transformers (openai/CLIP, `model.py`)."""
    blocks = list(blocks)
    nn.init.normal_(positions, std=0.01)
    for block in blocks:
        width = block.qkv.in_features
        nn.init.normal_(block.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.mlp_in.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.attention_out.weight, std=(2 * len(blocks) * width) ** -0.5)
        nn.init.normal_(block.mlp_out.weight, std=(2 * len(blocks) * width) ** -0.5)
        for layer in (block.qkv, block.attention_out, block.mlp_in, block.mlp_out):
            nn.init.zeros_(layer.bias)


def keys_and_values(blocks: Iterable[Block], h: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Tokens h [B, N, W] → their keys and values [2, B, H, N, C] in each layer."""
    blocks = list(blocks)
    layers: list[Tensor] = []
    for index, block in enumerate(blocks):
        q, kv = block.project(h)
        layers.append(kv.contiguous())  # without the queries, whose memory a view would keep
        if index < len(blocks) - 1:  # of the last layer nothing but keys and values is ever read
            h = block.finish(h, q, kv, mask)
    return tuple(layers)


def require_shape(name: str, config: Any, *fields: str) -> None:
    """Raise a ValueError unless these fields of a config are sizes and its heads divide its width."""
    require_sizes(name, config, *fields)
    if config.width % config.heads:
        raise ValueError(
            f"{name}: width {config.width} is not a multiple of its {config.heads} heads; change one"
        )


def require_caption(
    name: str, tokens: Tensor, pooled: Tensor, mask: Tensor, *, length: int, width: int, dim: int
) -> None:
    """Raise a ValueError unless these are features [B, N ≤ length, width], z_t [B, dim] and masks [B, N]."""
    shape = list(tokens.shape)
    if tokens.ndim != 3 or shape[2] != width or shape[1] > length:
        raise ValueError(
            f"{name}: caption features must be [captions, up to {length}, {width}], found {shape}; use the "
            f"CLIP model that belongs to this prior"
        )
    if pooled.shape != (shape[0], dim) or mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{name}: for caption features {shape} expected a text embedding [{shape[0]}, {dim}] and a bool "
            f"mask {shape[:2]}, found {list(pooled.shape)} and {mask.dtype} {list(mask.shape)}"
        )


def longest(mask: Tensor) -> int:
    """Positions of captions [B, N] up to and including the last valid one of any."""
    used = mask.any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
