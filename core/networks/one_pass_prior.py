"""ECLIPSE: a prior that is no diffusion, from a caption and noise to the image embedding in one pass.

Source: ECLIPSE (2312.04655), section 3; as code eclipse-t2i/eclipse-inference, `prior_transformer.py`. It is
the transformer of a diffusion prior without its timestep. Tokens, in causal order:

    caption tokens · z_t · noise · query

and the query's output is the embedding, in the convention of the CLIP space and not standardised. To the
samplers it is a diffusion of a single step, whose x_T is the noise and whose x̂_0 is the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .diffusion_prior import DiffusionPriorConfig
from .layers import Stack
from .prior_blocks import Block, initialise, longest, require_caption
from .prior_cache import causal_mask

ONE_PASS_EXTRA_TOKENS = 3


@dataclass(frozen=True)
class OnePassPriorConfig(DiffusionPriorConfig):
    """Shape of a one-pass prior: a diffusion prior's transformer, described in the same numbers."""

    kind: ClassVar[str] = "one-pass prior"


@dataclass(frozen=True, eq=False)
class Captions:
    """What the network sees of G captions: features [G, N, text_dim], z_t [G, D], mask [G, N]."""

    tokens: Tensor
    pooled: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.pooled)


class OnePassPrior(nn.Module):
    """Caption and noise → CLIP image embedding."""

    def __init__(self, config: OnePassPriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_in = nn.Linear(config.text_dim, width)
        self.pooled_in = nn.Linear(config.dim, width)
        self.noise_in = nn.Linear(config.dim, width)
        self.query = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.empty(config.text_length + ONE_PASS_EXTRA_TOKENS, width))
        self.blocks: Stack[Block] = Stack(
            Block(width, config.heads, config.mlp_ratio) for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)
        initialise(self.blocks, self.positions)

    def forward(self, noise: Tensor, text_tokens: Tensor, text_pooled: Tensor, text_mask: Tensor) -> Tensor:
        """One pass.

        Args:
            noise: standard normal [B, D].
            text_tokens: caption features [B, N, text_dim], N ≤ L; missing positions count as padding.
            text_pooled: z_t, [B, D].
            text_mask: [B, N] bool, False for padding, which no token attends.

        Returns:
            [B, D].

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        config, dtype, length = self.config, self.query.dtype, text_tokens.shape[1]
        self._check_text(text_tokens, text_pooled, text_mask)
        if noise.shape != text_pooled.shape:
            raise ValueError(
                f"one-pass prior: for {len(text_pooled)} captions expected noise [{len(text_pooled)}, "
                f"{config.dim}], found {list(noise.shape)}"
            )
        tokens = torch.cat(
            [
                self.text_in(text_tokens.to(dtype)) + self.positions[:length],
                self.pooled_in(text_pooled.to(dtype))[:, None] + self.positions[-3],
                self.noise_in(noise.to(dtype))[:, None] + self.positions[-2],
                (self.query + self.positions[-1]).expand(len(noise), 1, -1),
            ],
            dim=1,
        )  # [B, N + 3, W]
        mask = causal_mask(F.pad(text_mask, (0, ONE_PASS_EXTRA_TOKENS), value=True))
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.out(self.out_norm(tokens[:, -1]))

    # --- as the samplers call a diffusion prior ---

    def prefill(
        self,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
        timesteps: Tensor,
    ) -> Captions:
        """The captions, without the padding that all of them have. There is one timestep, which says nothing.

        Raises:
            ValueError: shapes that do not fit the config or each other, or more timesteps than one.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        if len(timesteps) != 1:
            raise ValueError(f"one-pass prior: found {len(timesteps)} timesteps, expected one")
        end = longest(text_mask)
        return Captions(text_tokens[:, :end], text_pooled, text_mask[:, :end])

    @torch.no_grad()
    def step(self, x: Tensor, step: int, captions: Captions) -> Tensor:
        """Noise [G, M, D] for M candidates of each caption → embeddings [G, M, D]."""
        candidates = x.shape[1]
        tokens, pooled, mask = (
            repeat(value, "g ... -> (g m) ...", m=candidates)
            for value in (captions.tokens, captions.pooled, captions.mask)
        )
        found = self(rearrange(x, "g m d -> (g m) d"), tokens, pooled, mask)
        return rearrange(found, "(g m) d -> g m d", m=candidates)

    def _check_text(self, tokens: Tensor, pooled: Tensor, mask: Tensor) -> None:
        config = self.config
        require_caption(
            "one-pass prior",
            tokens,
            pooled,
            mask,
            length=config.text_length,
            width=config.text_dim,
            dim=config.dim,
        )
