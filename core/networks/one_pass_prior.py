"""ECLIPSE: a prior that is no diffusion, from a caption and noise to the image embedding in one pass.

Source: ECLIPSE (2312.04655), section 3; as code eclipse-t2i/eclipse-inference, `prior_transformer.py`. It is
the transformer of a diffusion prior without its timestep. Tokens, in causal order:

    caption tokens · (control) · z_t · noise · query

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
"""z_t, noise and query; a control is one more."""


@dataclass(frozen=True)
class OnePassPriorConfig(DiffusionPriorConfig):
    """Shape of a one-pass prior: a diffusion prior's transformer, described in the same numbers.

    Attributes:
        control: an image embedding is one of its tokens, that of a drawing of outlines or of an all-zero
            picture (λ-ECLIPSE).
    """

    control: bool = False

    kind: ClassVar[str] = "one-pass prior"

    @property
    def extra_tokens(self) -> int:
        """Positions behind the caption's."""
        return ONE_PASS_EXTRA_TOKENS + self.control


@dataclass(frozen=True, eq=False)
class Captions:
    """What the network sees of G captions.

    Features [G, N, text_dim], z_t [G, D], mask [G, N], and of networks that take one the control [G, D].
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor
    control: Tensor | None = None

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
        if config.control:
            self.control_in = nn.Linear(config.dim, width)
        self.query = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.empty(config.text_length + config.extra_tokens, width))
        self.blocks: Stack[Block] = Stack(
            Block(width, config.heads, config.mlp_ratio) for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)
        initialise(self.blocks, self.positions)

    def forward(
        self,
        noise: Tensor,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
        control: Tensor | None = None,
    ) -> Tensor:
        """One pass.

        Args:
            noise: standard normal [B, D].
            text_tokens: caption features [B, N, text_dim], N ≤ L; missing positions count as padding.
            text_pooled: z_t, [B, D].
            text_mask: [B, N] bool, False for padding, which no token attends.
            control: an image embedding [B, D], of a network that takes one.

        Returns:
            [B, D].

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        config, dtype, length = self.config, self.query.dtype, text_tokens.shape[1]
        self._check_text(text_tokens, text_pooled, text_mask, control)
        if noise.shape != text_pooled.shape:
            raise ValueError(
                f"one-pass prior: for {len(text_pooled)} captions expected noise [{len(text_pooled)}, "
                f"{config.dim}], found {list(noise.shape)}"
            )
        controls = []
        if control is not None:
            controls = [self.control_in(control.to(dtype))[:, None] + self.positions[-4]]
        tokens = torch.cat(
            [
                self.text_in(text_tokens.to(dtype)) + self.positions[:length],
                *controls,
                self.pooled_in(text_pooled.to(dtype))[:, None] + self.positions[-3],
                self.noise_in(noise.to(dtype))[:, None] + self.positions[-2],
                (self.query + self.positions[-1]).expand(len(noise), 1, -1),
            ],
            dim=1,
        )  # [B, N + 3, W], or one more
        mask = causal_mask(F.pad(text_mask, (0, config.extra_tokens), value=True))
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
        control: Tensor | None = None,
    ) -> Captions:
        """The captions, without the padding that all of them have. There is one timestep, which says nothing.

        Raises:
            ValueError: shapes that do not fit the config or each other, or more timesteps than one.
        """
        self._check_text(text_tokens, text_pooled, text_mask, control)
        if len(timesteps) != 1:
            raise ValueError(f"one-pass prior: found {len(timesteps)} timesteps, expected one")
        end = longest(text_mask)
        return Captions(text_tokens[:, :end], text_pooled, text_mask[:, :end], control)

    @torch.no_grad()
    def step(self, x: Tensor, step: int, captions: Captions) -> Tensor:
        """Noise [G, M, D] for M candidates of each caption → embeddings [G, M, D]."""
        candidates = x.shape[1]
        tokens, pooled, mask = (
            repeat(value, "g ... -> (g m) ...", m=candidates)
            for value in (captions.tokens, captions.pooled, captions.mask)
        )
        control = captions.control
        if control is not None:
            control = repeat(control, "g d -> (g m) d", m=candidates)
        found = self(rearrange(x, "g m d -> (g m) d"), tokens, pooled, mask, control)
        return rearrange(found, "(g m) d -> g m d", m=candidates)

    def _check_text(self, tokens: Tensor, pooled: Tensor, mask: Tensor, control: Tensor | None) -> None:
        config = self.config
        if config.control and control is None:
            raise ValueError(
                "text: this prior (λ-ECLIPSE) reads a picture beside the caption, and this caption carries "
                "none; encode it with unCLIP Subjects"
            )
        if not config.control and control is not None:
            raise ValueError(
                "one-pass prior: found a control, which this network does not read; leave it out"
            )
        if control is not None and control.shape != pooled.shape:
            raise ValueError(
                f"one-pass prior: the control must be {list(pooled.shape)}, found {list(control.shape)}"
            )
        require_caption(
            "one-pass prior",
            tokens,
            pooled,
            mask,
            length=config.text_length,
            width=config.text_dim,
            dim=config.dim,
        )
