"""How CLIP embeddings and captions enter a U-Net: added to the timestep embedding and as context tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .sizes import MAX_WIDTH, require_size

_SIZES = (
    "clip_dim",
    "clip_tokens",
    "clip_layout",
    "text_dim",
    "text_pooled_dim",
    "context_dim",
    "hint_channels",
)


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
        norm_text: whether there is that LayerNorm (not in Kandinsky 2.1).
        norm_pooled: the projected pooled caption passes a LayerNorm (Kandinsky 2.1).
        norm_clip: z_i passes a LayerNorm behind each of its projections (Kandinsky 2.2).
        read_padding: padding is attended like any other token (Kandinsky 2.1).
        hint_channels: channels of a map of the size of x_t that is made from a hint picture 8 times as large
            and enters beside x_t (see :class:`HintLayout`); 0 for none.
        learned_null: a vector of the network's own stands for a dropped z_i; otherwise zeros do.
        null_picture: z_i was dropped in training by giving the CLIP embedding of an all-zero picture
            (Kandinsky). With ``learned_null`` the network holds it; without, nothing stands for it yet.
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
    norm_text: bool = True
    norm_pooled: bool = False
    norm_clip: bool = False
    read_padding: bool = False
    hint_channels: int = 0
    null_picture: bool = False

    def __post_init__(self) -> None:
        if self.clip_dim is None and self.text_dim is None and self.text_pooled_dim is None:
            raise ValueError("conditioning needs at least one of clip_dim, text_dim and text_pooled_dim")
        for name in _SIZES:
            if getattr(self, name):  # None and 0 are for inputs that are not used
                require_size(f"conditioning: {name}", getattr(self, name), MAX_WIDTH)
        for name in ("clip_tokens", "clip_layout", "norm_clip", "null_picture"):
            if getattr(self, name) and self.clip_dim is None:
                raise ValueError(f"{name} needs clip_dim")
        if self.clip_layout and self.hint_channels:
            raise ValueError("clip_layout and hint_channels exclude each other: found both")
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
    def null_known(self) -> bool:
        """Whether something stands for a dropped z_i: not before it was computed where it is a picture's."""
        return self.learned_null or not self.null_picture

    @property
    def has_context(self) -> bool:
        """Whether there are context tokens."""
        return self.clip_tokens > 0 or self.text_dim is not None


@dataclass(frozen=True, eq=False)
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


class HintLayout(nn.Module):
    """A hint picture → a map of 1/8 of its size, beside x_t (Kandinsky 2.2's depth decoder).

    ``ImageHintTimeEmbedding.input_hint_block`` of diffusers, the hint network of ControlNet (2302.05543).
    """

    scale = 8
    """Side of a hint divided by that of x_t."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 96, 2), (96, 96, 1), (96, 256, 2))
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride) for inputs, outputs, stride in widths
        )
        self.out = nn.Conv2d(256, channels, 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        """[B, 3, 8·H, 8·W] in 0..1 → [B, channels, H, W]."""
        for layer in self.layers:
            hint = F.silu(layer(hint))
        return self.out(hint)


class Conditioner(nn.Module):
    """z_i, caption tokens, pooled caption and hint picture → what a U-Net takes of them."""

    def __init__(self, config: ConditioningConfig, embedding_dim: int, grid: int) -> None:
        super().__init__()
        self.config = config
        if config.clip_dim is not None:
            self.clip_embedding = nn.Linear(config.clip_dim, embedding_dim)
            if config.learned_null:
                self.null_clip = nn.Parameter(torch.zeros(config.clip_dim))
            if config.clip_tokens:
                self.clip_context = nn.Linear(config.clip_dim, config.clip_tokens * config.context_dim)
            if config.norm_clip:
                self.clip_embedding_norm = nn.LayerNorm(embedding_dim)
                if config.clip_tokens:
                    self.clip_context_norm = nn.LayerNorm(config.context_dim)
            if config.clip_layout:
                self.clip_layout = GridLayout(config.clip_dim, config.clip_layout, grid)
        if config.hint_channels:
            self.hint_layout = HintLayout(config.hint_channels)
        if config.text_dim is not None and config.project_text:
            self.text_context = nn.Linear(config.text_dim, config.context_dim)
            if config.norm_text:
                self.text_norm = nn.LayerNorm(config.context_dim)
        if config.text_pooled_dim is not None:
            self.text_embedding = nn.Linear(config.text_pooled_dim, embedding_dim)
            if config.norm_pooled:
                self.text_embedding_norm = nn.LayerNorm(embedding_dim)

    def forward(
        self,
        batch: int,
        clip_embedding: Tensor | None = None,
        keep_clip: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_pooled: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Conditions:
        """Embed the conditions of a batch of B rows. Inputs that the config does not have are ignored.

        Args:
            clip_embedding: [B, D]; None for the null embedding in all rows.
            keep_clip: [B] bool, False where the null embedding replaces z_i (training); None keeps all.
            text_tokens: [B, L, W], or None for no caption.
            text_mask: [B, L] bool, False for padding; a row without any True has no caption. None: all valid.
            text_pooled: [B, P], or None for none; ignored in rows without a caption.
            hint: [B, 3, 8·H, 8·W] in 0..1, which a config with ``hint_channels`` needs.

        Raises:
            ValueError: shapes that do not fit the config or each other, or no hint.
        """
        config = self.config
        self._check(batch, clip_embedding, keep_clip, text_tokens, text_mask, text_pooled)
        self._check_hint(batch, hint)
        embeddings: list[Tensor] = []
        parts: list[Tensor] = []
        layout = None

        if config.clip_dim is not None:
            z_i = self._with_null(clip_embedding, keep_clip, batch)  # [B, D]
            embedded = self.clip_embedding(z_i)  # [B, E]
            embeddings.append(self.clip_embedding_norm(embedded) if config.norm_clip else embedded)
            if config.clip_tokens:
                own = rearrange(self.clip_context(z_i), "b (n c) -> b n c", n=config.clip_tokens)
                parts.append(self.clip_context_norm(own) if config.norm_clip else own)
            if config.clip_layout:
                layout = self.clip_layout(z_i)  # [B, clip_layout, grid, grid]
        if config.hint_channels:
            layout = self.hint_layout(hint)  # [B, hint_channels, H, W]
        if config.text_pooled_dim is not None and text_pooled is not None:
            pooled = self.text_embedding(text_pooled)  # [B, E]
            if config.norm_pooled:
                pooled = self.text_embedding_norm(pooled)
            embeddings.append(pooled if text_mask is None else pooled * text_mask.any(dim=1, keepdim=True))
        if config.text_dim is not None and text_tokens is not None:
            projected = self.text_context(text_tokens) if config.project_text else text_tokens
            if config.project_text and config.norm_text:
                projected = self.text_norm(projected)
            parts.append(projected)  # [B, L, C]

        embedding = sum(embeddings[1:], embeddings[0]) if embeddings else None
        tokens = torch.cat(parts, dim=1) if parts else None  # [B, N, C]
        mask = None
        reads_text = config.text_dim is not None and text_tokens is not None
        if reads_text and text_mask is not None and not config.read_padding:
            # The tokens of z_i, which are always valid, stand in front of the caption.
            mask = F.pad(text_mask, (config.clip_tokens, 0), value=True)
        return Conditions(embedding, layout, tokens, mask)

    def _with_null(self, clip_embedding: Tensor | None, keep_clip: Tensor | None, batch: int) -> Tensor:
        reference = self.clip_embedding.weight
        if clip_embedding is not None and keep_clip is None:
            return clip_embedding
        if not self.config.null_known:
            raise ValueError(
                "clip_embedding: of this network the null embedding, which is the CLIP embedding of an "
                "all-zero picture, is not known; give an embedding for every row"
            )
        null = self.null_clip if self.config.learned_null else reference.new_zeros(reference.shape[1])
        null = null.expand(batch, -1)
        if clip_embedding is None:
            return null
        assert keep_clip is not None, "without it the embedding is returned as it is"
        return torch.where(keep_clip[:, None], clip_embedding, null.to(clip_embedding.dtype))

    def _check_hint(self, batch: int, hint: Tensor | None) -> None:
        if not self.config.hint_channels:
            return
        shape = None if hint is None else list(hint.shape)
        if shape is None or len(shape) != 4 or shape[:2] != [batch, 3]:
            raise ValueError(f"hint: found shape {shape}, expected [{batch}, 3, height, width] in 0..1")
        if any(side % HintLayout.scale for side in shape[2:]):
            raise ValueError(f"hint: found shape {shape}, expected sides that are multiples of 8")

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
