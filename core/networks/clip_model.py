"""The two transformers of CLIP, with the parameters of open_clip's ``CLIP`` under the same names.

Source: openai/CLIP, `clip/model.py`; open_clip, `transformer.py`. Its package is not imported for them: it
brings torchvision, timm and torch's compiler along, which takes longer than painting a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Stack

FIRST_SCALE = 1 / 0.07
"""Inverse temperature with which training begins (2103.00020, section 2.5)."""


@dataclass(frozen=True)
class Shape:
    """Of a transformer; ``quick_gelu``: with OpenAI's approximation of GELU."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float
    quick_gelu: bool


class ClipModel(nn.Module):
    """Image encoder ``visual``, the parts of the text encoder, and the logarithm of the inverse temperature.

    Args:
        visual: None leaves the image encoder out.
        text: None leaves the text encoder out; ``ClipNetwork.encode_tokens`` runs its parts.
    """

    attn_mask: Tensor

    def __init__(self, visual: VisionTransformer | None, text: TextTransformer | None) -> None:
        super().__init__()
        if visual is not None:
            self.visual = visual
        if text is not None:  # its parts, not itself: so they are named in checkpoints
            self.transformer = text.transformer
            self.token_embedding = text.token_embedding
            self.positional_embedding = text.positional_embedding
            self.ln_final = text.ln_final
            self.text_projection = text.text_projection
            # Made on an explicit device: this buffer is in no checkpoint, so it has to have its values even
            # when the network is built on the meta device to be filled from a file.
            length = len(text.positional_embedding)
            causal = torch.full((length, length), float("-inf"), device="cpu").triu_(1)
            self.register_buffer("attn_mask", causal, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))


class VisionTransformer(nn.Module):
    """Pictures [B, 3, S, S], normalised → embeddings [B, D], not normalised."""

    def __init__(self, shape: Shape, image_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        width = shape.width
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        scale, patches = width**-0.5, (image_size // patch_size) ** 2
        self.class_embedding = _normal(width, std=scale)
        self.positional_embedding = _normal(patches + 1, width, std=scale)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(shape)
        self.ln_post = LayerNorm(width)
        self.proj = _normal(width, embed_dim, std=scale)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [B, N, W]
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        x = self.transformer(self.ln_pre(x))  # [B, 1 + N, W]
        return self.ln_post(x)[:, 0] @ self.proj


class TextTransformer(nn.Module):
    """The parts of the text encoder, with the values that training begins with."""

    def __init__(self, shape: Shape, context_length: int, vocab_size: int, embed_dim: int) -> None:
        super().__init__()
        width = shape.width
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(shape)
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        narrow = width**-0.5
        deep = narrow * (2 * shape.layers) ** -0.5
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=narrow)
            nn.init.normal_(block.attn.out_proj.weight, std=deep)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=deep)
        nn.init.normal_(self.text_projection, std=narrow)


class Transformer(nn.Module):
    """Blocks over [B, N, W]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.resblocks = Stack[Block](Block(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask`` [N, N] is added to the logits of the attention."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Block(nn.Module):
    """Attention and two layers, each behind a norm and beside a skip."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(shape.width)
        self.attn = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.ln_2 = LayerNorm(shape.width)
        self.mlp = FeedForward(shape.width, int(shape.width * shape.mlp_ratio), shape.quick_gelu)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        mask = None if mask is None else mask.to(y.dtype)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGelu() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


def _normal(*shape: int, std: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    nn.init.normal_(parameter, std=std)
    return parameter


class LayerNorm(nn.LayerNorm):
    """In the precision of its input, where autocast would leave float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class QuickGelu(nn.Module):
    """The sigmoid approximation of GELU (1606.08415, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
