"""GLIDE's text encoder, which is trained with its U-Net and lies in the same file.

Source: GLIDE (2112.10741), section 2.3 and openai/glide-text2im, `text2im_model.py` and `xf.py`. Unlike
CLIP's it is bidirectional, has no start and end tokens, and attends to padding: a learned vector stands at
each padded position, and the features of the last position, usually padding, stand for the whole caption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Stack
from .prior_blocks import Block, initialise, require_shape


@dataclass(frozen=True)
class GlideTextConfig:
    """Shape of the text encoder; the defaults are those of the published models.

    Attributes:
        width, layers, heads: of the transformer.
        text_length: number of positions L.
        vocab_size: of the tokenizer; the last id is the padding.
    """

    width: int = 512
    layers: int = 16
    heads: int = 8
    text_length: int = 128
    vocab_size: int = 50257

    def __post_init__(self) -> None:
        require_shape("GLIDE text encoder", self, "width", "layers", "heads", "text_length", "vocab_size")

    @property
    def padding(self) -> int:
        return self.vocab_size - 1


class GlideText(nn.Module):
    """Token ids → features of the caption; stands where a CLIP model does, without its image encoder."""

    def __init__(self, config: GlideTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.text_length, config.width))
        self.padding = nn.Parameter(torch.zeros(config.text_length, config.width))
        self.blocks: Stack[Block] = Stack(Block(config.width, config.heads, 4) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        initialise(self.blocks, self.positions)

    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features token by token and as a whole, as ``ClipNetwork.encode_tokens``.

        Args:
            ids: [B, L] int64, the caption and then padding.

        Returns:
            tokens: [B, L, W].
            mask: [B, L] bool, all True: padding is attended.
            pooled: [B, W], the features of the last position.

        Raises:
            ValueError: ids of another length than the config's.
        """
        config = self.config
        if ids.ndim != 2 or ids.shape[1] != config.text_length:
            raise ValueError(
                f"token ids have shape {tuple(ids.shape)}, expected [batch, {config.text_length}]"
            )
        valid = (ids != config.padding)[:, :, None]
        h = torch.where(valid, self.token_embedding(ids) + self.positions, self.padding)  # [B, L, W]
        for block in self.blocks:
            h = block(h, None)
        tokens = self.norm_out(h)
        return tokens, torch.ones_like(ids, dtype=torch.bool), tokens[:, -1]

    def encode_pixels(self, images: Tensor, fit: object = None) -> Tensor:
        """Raise a ValueError: GLIDE has no image encoder."""
        raise ValueError(
            "this is GLIDE's text encoder, which cannot encode pictures: GLIDE paints from captions alone. "
            "Encode pictures with a CLIP model, for a decoder that takes image embeddings"
        )
