"""Kandinsky 2.1's text encoder: XLM-RoBERTa with a projection into CLIP's space (M-CLIP).

Sources: XLM-R (1911.02116), RoBERTa (1907.11692) and M-CLIP (Cross-lingual and Multilingual CLIP); as code,
`pipelines/kandinsky/text_encoder.py` of diffusers and transformers' `XLMRobertaModel`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import attention
from .prior_blocks import require_shape

PADDING = 1
"""Id of padding tokens; the positions of a caption count from the one behind it."""


@dataclass(frozen=True)
class MultilingualClipConfig:
    """Shape of the text encoder; the defaults are those of the published model.

    Attributes:
        dim: width D of the projected caption.
        width, layers, heads: of the transformer.
        hidden: width inside the feed-forward layers.
        vocab_size: of the tokenizer.
        text_length: tokens L of a caption, as its decoder was trained.
        positions: that the transformer has, two of them unused.
    """

    dim: int = 768
    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    vocab_size: int = 250002
    text_length: int = 77
    positions: int = 514

    def __post_init__(self) -> None:
        names = ("dim", "width", "layers", "heads", "hidden", "vocab_size", "positions")
        require_shape("multilingual CLIP", self, *names)
        if not 0 < self.text_length <= self.positions - PADDING - 1:
            raise ValueError(
                f"multilingual CLIP: text_length is {self.text_length}, expected at most "
                f"{self.positions - PADDING - 1} for {self.positions} positions"
            )


class MultilingualClip(nn.Module):
    """Token ids → features of the caption; stands where a CLIP model does, without its image encoder."""

    def __init__(self, config: MultilingualClipConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.segment = nn.Embedding(1, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.projection = nn.Linear(config.width, config.dim)

    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features token by token and as a whole, as ``ClipNetwork.encode_tokens``.

        Args:
            ids: [B, L] int64, start token, caption, end token, padding.

        Returns:
            tokens: [B, L, W], the last hidden states, of padding too.
            mask: [B, L] bool, False for padding.
            pooled: [B, D], the projected mean of the valid tokens' features, not normalised.

        Raises:
            ValueError: ids of another length than the config's.
        """
        if ids.ndim != 2 or ids.shape[1] != self.config.text_length:
            raise ValueError(
                f"token ids have shape {tuple(ids.shape)}, expected [batch, {self.config.text_length}]"
            )
        mask = ids != PADDING  # [B, L]
        places = mask.cumsum(dim=1) * mask + PADDING
        h = self.norm_in(self.token_embedding(ids) + self.positions(places) + self.segment.weight[0])
        for block in self.blocks:
            h = block(h, mask[:, None, None])  # [B, L, W]
        weights = mask.to(h.dtype)[..., None]
        return h, mask, self.projection((h * weights).sum(dim=1) / weights.sum(dim=1))

    def encode_pixels(self, images: Tensor, fit: object = None) -> Tensor:
        """Raise a ValueError: it has no image encoder."""
        raise ValueError(
            "this is Kandinsky 2.1's text encoder, which cannot encode pictures; encode them with the CLIP "
            "model of the same system"
        )


class _Block(nn.Module):
    """A transformer block with its norms behind the sums, as BERT's."""

    def __init__(self, config: MultilingualClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, config.hidden)
        self.mlp_out = nn.Linear(config.hidden, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(h), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        h = self.attention_norm(h + self.attention_out(attention(q, k, v, mask)))
        return self.mlp_norm(h + self.mlp_out(F.gelu(self.mlp_in(h))))
