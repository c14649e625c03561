"""How CLIP embeddings and captions enter a U-Net: added to the timestep embedding and as context tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .sizes import MAX_WIDTH, require_size


@dataclass(frozen=True)
class ConditioningConfig:
    """Inputs of a conditioned U-Net. A dimension of None (or 0 tokens) means that the input is not used.

    Attributes:
        clip_dim: width D of the CLIP image embedding z_i, projected and added to the timestep embedding.
        clip_tokens: number of context tokens made from z_i (4 in the paper, section 2.1).
        clip_layout: channels of a map over the first grid that is made from z_i and enters beside x_t (see
            :class:`GridLayout`); 0 for none. Fixes the size.
        text_dim: width W of the caption's token features, which follow as context tokens.
        text_pooled_dim: width of the pooled caption, projected and added to the timestep embedding.
        context_dim: width of the context tokens.
        project_text: token features pass a Linear and a LayerNorm (Karlo); otherwise they are used as they
            are, and W must be ``context_dim`` (GLIDE).
        learned_null: a learned vector stands for a dropped z_i; otherwise zeros do.
        standardised: z_i is expected standardised (``EmbeddingSpace.standardise``), as our own decoders are.
        null_text: what the unconditional branch sees for a caption: no text, or the empty caption's features.
    """

    clip_dim: int | None = None
    clip_tokens: int = 0
    clip_layout: int = 0
    text_dim: int | None = None
    text_pooled_dim: int | None = None
    context_dim: int = 0
    project_text: bool = True
    learned_null: bool = True
    standardised: bool = False
    null_text: Literal["none", "empty_caption"] = "none"

    def __post_init__(self) -> None:
        if self.clip_dim is None and self.text_dim is None and self.text_pooled_dim is None:
            raise ValueError("conditioning needs at least one of clip_dim, text_dim and text_pooled_dim")
        for name in ("clip_dim", "clip_tokens", "clip_layout", "text_dim", "text_pooled_dim", "context_dim"):
            if getattr(self, name):  # None and 0 are for inputs that are not used
                require_size(f"conditioning: {name}", getattr(self, name), MAX_WIDTH)
        for name in ("clip_tokens", "clip_layout"):
            if getattr(self, name) and self.clip_dim is None:
                raise ValueError(f"{name} needs clip_dim")
        if self.has_context and self.context_dim < 1:
            raise ValueError(f"context_dim is {self.context_dim}, expected the width of the context tokens")
        if self.text_dim is not None and not self.project_text and self.text_dim != self.context_dim:
            raise ValueError(
                f"without projection text_dim {self.text_dim} must be context_dim {self.context_dim}"
            )

    @property
    def has_embedding(self) -> bool:
        """Whether anything is added to the timestep embedding."""
        return self.clip_dim is not None or self.text_pooled_dim is not None

    @property
    def has_context(self) -> bool:
        """Whether there are context tokens."""
        return self.clip_tokens > 0 or self.text_dim is not None


@dataclass(frozen=True)
class Conditions:
    """What a :class:`Conditioner` makes of a batch; None where nothing is given for it.

    Attributes:
        embedding: [B, E], for the timestep embedding.
        layout: [B, clip_layout, grid, grid], to enter beside x_t.
        tokens: [B, N, C] context tokens.
        mask: [B, N] bool, True for valid tokens; None when all are.
    """

    embedding: Tensor | None = None
    layout: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None


class GridLayout(nn.Module):
    """z_i → a map of the first grid: where in the picture what is to be seen.

    At the strongest noise, all that a network can know of a picture comes from z_i, and a small U-Net takes
    very long to learn shapes from a vector that reaches every place alike. Pictures of one concept have
    embeddings that lie close together, which is why it takes some depth to tell them apart.
    """

    def __init__(self, clip_dim: int, channels: int, grid: int, blocks: int = 3) -> None:
        super().__init__()
        width = 4 * clip_dim
        self.grid = grid
        self.proj_in = nn.Linear(clip_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(blocks)
        )
        self.proj_out = nn.Linear(width, channels * grid**2)

    def forward(self, z_i: Tensor) -> Tensor:
        """[B, D] → [B, channels, grid, grid]."""
        h = self.proj_in(z_i)
        for block in self.blocks:
            h = h + block(h)
        return rearrange(self.proj_out(h), "b (c h w) -> b c h w", h=self.grid, w=self.grid)


class Conditioner(nn.Module):
    """z_i, caption tokens and pooled caption → what a U-Net takes of them."""

    def __init__(self, config: ConditioningConfig, embedding_dim: int, grid: int) -> None:
        super().__init__()
        self.config = config
        if config.clip_dim is not None:
            self.clip_embedding = nn.Linear(config.clip_dim, embedding_dim)
            if config.learned_null:
                self.null_clip = nn.Parameter(torch.zeros(config.clip_dim))
            if config.clip_tokens:
                self.clip_context = nn.Linear(config.clip_dim, config.clip_tokens * config.context_dim)
            if config.clip_layout:
                self.clip_layout = GridLayout(config.clip_dim, config.clip_layout, grid)
        if config.text_dim is not None and config.project_text:
            self.text_context = nn.Linear(config.text_dim, config.context_dim)
            self.text_norm = nn.LayerNorm(config.context_dim)
        if config.text_pooled_dim is not None:
            self.text_embedding = nn.Linear(config.text_pooled_dim, embedding_dim)

    def forward(
        self,
        batch: int,
        clip_embedding: Tensor | None = None,
        keep_clip: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_pooled: Tensor | None = None,
    ) -> Conditions:
        """Embed the conditions of a batch of B rows. Inputs that the config does not have are ignored.

        Args:
            clip_embedding: [B, D]; None for the null embedding in all rows.
            keep_clip: [B] bool, False where the null embedding replaces z_i (training); None keeps all.
            text_tokens: [B, L, W], or None for no caption.
            text_mask: [B, L] bool, False for padding; a row without any True has no caption. None: all valid.
            text_pooled: [B, P], or None for none; ignored in rows without a caption.

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        config = self.config
        self._check(batch, clip_embedding, keep_clip, text_tokens, text_mask, text_pooled)
        embeddings: list[Tensor] = []
        parts: list[Tensor] = []
        layout = None

        if config.clip_dim is not None:
            z_i = self._with_null(clip_embedding, keep_clip, batch)  # [B, D]
            embeddings.append(self.clip_embedding(z_i))  # [B, E]
            if config.clip_tokens:
                parts.append(rearrange(self.clip_context(z_i), "b (n c) -> b n c", n=config.clip_tokens))
            if config.clip_layout:
                layout = self.clip_layout(z_i)  # [B, clip_layout, grid, grid]
        if config.text_pooled_dim is not None and text_pooled is not None:
            pooled = self.text_embedding(text_pooled)  # [B, E]
            embeddings.append(pooled if text_mask is None else pooled * text_mask.any(dim=1, keepdim=True))
        if config.text_dim is not None and text_tokens is not None:
            projected = self.text_norm(self.text_context(text_tokens)) if config.project_text else text_tokens
            parts.append(projected)  # [B, L, C]

        embedding = sum(embeddings[1:], embeddings[0]) if embeddings else None
        tokens = torch.cat(parts, dim=1) if parts else None  # [B, N, C]
        mask = None
        if config.text_dim is not None and text_tokens is not None and text_mask is not None:
            # The tokens of z_i, which are always valid, stand in front of the caption.
            mask = F.pad(text_mask, (config.clip_tokens, 0), value=True)
        return Conditions(embedding, layout, tokens, mask)

    def _with_null(self, clip_embedding: Tensor | None, keep_clip: Tensor | None, batch: int) -> Tensor:
        reference = self.clip_embedding.weight
        null = self.null_clip if self.config.learned_null else reference.new_zeros(reference.shape[1])
        null = null.expand(batch, -1)
        if clip_embedding is None:
            return null
        if keep_clip is None:
            return clip_embedding
        return torch.where(keep_clip[:, None], clip_embedding, null.to(clip_embedding.dtype))

    def _check(
        self,
        batch: int,
        clip_embedding: Tensor | None,
        keep_clip: Tensor | None,
        text_tokens: Tensor | None,
        text_mask: Tensor | None,
        text_pooled: Tensor | None,
    ) -> None:
        config = self.config
        length = text_tokens.shape[1] if text_tokens is not None and text_tokens.ndim == 3 else None
        if config.clip_dim is not None:
            _require("clip_embedding", clip_embedding, batch, config.clip_dim)
            _require("keep_clip", keep_clip, batch)
        if config.text_dim is not None:
            _require("text_tokens", text_tokens, batch, length, config.text_dim)
        if config.text_pooled_dim is not None:
            _require("text_pooled", text_pooled, batch, config.text_pooled_dim)
        _require("text_mask", text_mask, batch, length)
        if text_mask is not None and text_mask.dtype != torch.bool:
            raise ValueError(f"text_mask: found {text_mask.dtype}, expected bool, True for valid tokens")


def _require(name: str, found: Tensor | None, *expected: int | None) -> None:
    """Raise a ValueError unless ``found`` is None or has the expected shape; None stands for any size."""
    if found is None:
        return
    fits = found.ndim == len(expected) and all(
        want is None or have == want for have, want in zip(found.shape, expected, strict=True)
    )
    if not fits:
        shape = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{name}: found shape {list(found.shape)}, expected [{shape}]")
