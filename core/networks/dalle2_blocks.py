"""The parts of DALLE2-pytorch's prior: multi-query attention, gated MLP, relative positions.

Source: lucidrains/DALLE2-pytorch, `dalle2_pytorch.py` (`Attention`, `FeedForward`, `RelPosBias`,
`LayerNorm`) and lucidrains/rotary-embedding-torch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

COSINE_SCALE = 16.0
DOT_PRODUCT_BIAS = 128.0
"""By what the relative bias counts more beside dot products: upstream divides the logits by this number, adds
the bias, and multiplies the sum (``pb_relax_alpha`` of versions before 1.4.3)."""

_BUCKETS, _MAX_DISTANCE = 32, 128
_ROTATED = 32  # at most this many dimensions of a head
_EPS = 1e-5


class GainNorm(nn.Module):
    """LayerNorm without a bias, in full precision."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.gain.shape, self.gain.float(), eps=_EPS).to(x.dtype)


def stabilised(x: Tensor) -> Tensor:
    """x over its largest component, as upstream does before the last norm; it undoes all but the sign."""
    return x / x.amax(dim=-1, keepdim=True)


class Positions(nn.Module):
    """Rotary embedding (RoFormer, 2104.09864) of the first dimensions of a head, neighbours in pairs."""

    frequencies: Tensor  # [R / 2]

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        rotated = min(_ROTATED, head_dim)
        exponent = torch.arange(0, rotated, 2, device="cpu") / rotated
        self.register_buffer("frequencies", 10000.0**-exponent)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        """Rotate x [..., N, C] by its positions [N]."""
        angles = where[:, None] * self.frequencies.float()  # [N, R / 2]
        cos, sin = angles.cos(), angles.sin()
        rotated, rest = x.split([2 * cos.shape[1], x.shape[-1] - 2 * cos.shape[1]], dim=-1)
        first, second = rearrange(rotated.float(), "... (r two) -> two ... r", two=2)
        pairs = torch.stack([first * cos - second * sin, second * cos + first * sin])
        rotated = rearrange(pairs, "two ... r -> ... (r two)", two=2)
        return torch.cat([rotated.to(x.dtype), rest], dim=-1)


class RelativeBias(nn.Module):
    """T5's relative position bias (1910.10683, section 2.1), causal, one table for all layers."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_BUCKETS, heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions of queries [Q] and keys [K] → [H, Q, K].

        Upstream counts the null key as position 0 of the keys but not of the queries: a distance is one less
        than it is, and a token and its predecessor share the bucket 0.
        """
        distance = (queries[:, None] - keys[None, :] - 1).clamp(min=0)
        exact = _BUCKETS // 2
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(_MAX_DISTANCE / exact)
        far = (exact + (ratio * (_BUCKETS - exact)).long()).clamp(max=_BUCKETS - 1)
        return rearrange(self.table(torch.where(distance < exact, distance, far)), "q k h -> h q k")


class Block(nn.Module):
    """Attention whose heads share keys and values, by cosine similarity or dot product, and a gated MLP."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, hidden: int, normformer: bool, cosine: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.cosine = cosine
        self.scale = COSINE_SCALE if cosine else head_dim**-0.5
        self.attention_norm = GainNorm(dim)
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.kv = nn.Linear(dim, 2 * head_dim, bias=False)
        self.null_kv = nn.Parameter(torch.zeros(2, head_dim))
        self.attention_out = nn.Linear(heads * head_dim, dim, bias=False)
        self.attention_out_norm = GainNorm(dim)
        self.mlp_norm = GainNorm(dim)
        self.mlp_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.hidden_norm = GainNorm(hidden) if normformer else nn.Identity()
        self.mlp_out = nn.Linear(hidden, dim, bias=False)

    def project(self, x: Tensor, positions: Positions | None, where: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, N, D] at positions [N] → queries [B, 1, H·N, C], keys and values [2, B, 1, N, C]."""
        h = self.attention_norm(x)
        q = rearrange(self.q(h), "b n (h c) -> b h n c", h=self.heads)
        k, v = rearrange(self.kv(h), "b n (two c) -> two b 1 n c", two=2)
        if positions is not None:
            q, k = positions(q, where), positions(k, where)
        q = rearrange(self._compared(q), "b h n c -> b 1 (h n) c")
        return q, torch.stack([self._compared(k), v])

    def finish(self, x: Tensor, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """x [B, N, D] after attention of q [B, 1, H·N, C] over kv [2, B, 1, M, C], and the MLP.

        Args:
            mask: [H·N, 1 + M], added to the logits; the first key is the learned null key.
        """
        null = torch.stack([self._compared(self.null_kv[0]), self.null_kv[1]])[:, None, None, None]
        k, v = torch.cat([null.expand(-1, len(x), -1, -1, -1), kv], dim=3)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        h = rearrange(h, "b 1 (h n) c -> b n (h c)", h=self.heads)
        x = x + self.attention_out_norm(self.attention_out(h))
        value, gate = self.mlp_in(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.mlp_out(self.hidden_norm(value * F.silu(gate)))

    def _compared(self, x: Tensor) -> Tensor:
        """Queries or keys [..., C] as they are compared."""
        return F.normalize(x, dim=-1) if self.cosine else x
