"""How CLIP embeddings and captions enter a U-Net: added to the timestep embedding and as context tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class ConditioningConfig:
    """Inputs of a conditioned U-Net. A dimension of None (or 0 tokens) means that the input is not used.

    Attributes:
        clip_dim: width D of the CLIP image embedding z_i, projected and added to the timestep embedding.
        clip_tokens: number of context tokens made from z_i (4 in the paper, section 2.1).
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
    text_dim: int | None = None
    text_pooled_dim: int | None = None
    context_dim: int = 0
    project_text: bool = True
    learned_null: bool = True
    standardised: bool = False
    null_text: Literal["none", "empty_caption"] = "none"

    def __post_init__(self) -> None:
        if self.clip_tokens and self.clip_dim is None:
            raise ValueError("clip_tokens needs clip_dim")
        if self.text_dim is not None and not self.project_text and self.text_dim != self.context_dim:
            raise ValueError(
                f"without projection text_dim {self.text_dim} must be context_dim {self.context_dim}"
            )

    @property
    def has_context(self) -> bool:
        return self.clip_tokens > 0 or self.text_dim is not None


class Conditioner(nn.Module):
    """z_i, caption tokens and pooled caption → a vector for the timestep embedding, and context tokens."""

    def __init__(self, config: ConditioningConfig, embedding_dim: int) -> None:
        super().__init__()
        self.config = config
        if config.clip_dim is not None:
            self.clip_embedding = nn.Linear(config.clip_dim, embedding_dim)
            if config.learned_null:
                self.null_clip = nn.Parameter(torch.zeros(config.clip_dim))
            if config.clip_tokens:
                self.clip_context = nn.Linear(config.clip_dim, config.clip_tokens * config.context_dim)
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
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Embed the conditions of a batch of B rows.

        Args:
            clip_embedding: [B, D]; None for the null embedding in all rows.
            keep_clip: [B] bool, False where the null embedding replaces z_i (training); None keeps all.
            text_tokens: [B, L, W] with ``text_mask`` [B, L] bool; a row without any True has no caption.
            text_pooled: [B, P]; ignored in rows without a caption.

        Returns:
            embedding [B, E], context [B, N, C] and its mask [B, N] bool (None: all valid); None where unused.
        """
        config = self.config
        embedding: Tensor | None = None
        parts: list[Tensor] = []
        masks: list[Tensor] = []

        if config.clip_dim is not None:
            z_i = self._with_null(clip_embedding, keep_clip, batch)  # [B, D]
            embedding = self.clip_embedding(z_i)
            if config.clip_tokens:
                tokens = rearrange(self.clip_context(z_i), "b (n c) -> b n c", n=config.clip_tokens)
                parts.append(tokens)
                masks.append(torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
        if config.text_dim is not None and text_tokens is not None:
            if text_mask is None:
                text_mask = torch.ones(text_tokens.shape[:2], dtype=torch.bool, device=text_tokens.device)
            tokens = self.text_norm(self.text_context(text_tokens)) if config.project_text else text_tokens
            parts.append(tokens)
            masks.append(text_mask)
        if config.text_pooled_dim is not None and text_pooled is not None:
            pooled = self.text_embedding(text_pooled)
            if text_mask is not None:
                pooled = pooled * text_mask.any(dim=1, keepdim=True)
            embedding = pooled if embedding is None else embedding + pooled
        if not parts:
            return embedding, None, None
        return embedding, torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    def _with_null(self, clip_embedding: Tensor | None, keep_clip: Tensor | None, batch: int) -> Tensor:
        reference = self.clip_embedding.weight
        null = self.null_clip if self.config.learned_null else reference.new_zeros(reference.shape[1])
        null = null.expand(batch, -1)
        if clip_embedding is None:
            return null
        if keep_clip is None:
            return clip_embedding
        return torch.where(keep_clip[:, None], clip_embedding, null.to(clip_embedding.dtype))
