"""The diffusion prior: a causal transformer from a caption and a noised image embedding to the clean one.

Sources: unCLIP (2204.06125), section 2.2; the layout is that of Karlo (kakaobrain/karlo, `prior_model.py`)
and Kandinsky. Tokens, in causal order:

    caption tokens · z_t · timestep · noised z_i · query

and the query's output is the prediction. While sampling, only the last two depend on the sampling state: a
caption token sees the caption before it, z_t the caption, the timestep both. So
:meth:`DiffusionPrior.prefill` passes caption, z_t and the timesteps of *all* sampling steps once, and
:meth:`DiffusionPrior.step` passes two tokens a candidate over their keys and values: together exactly what
:meth:`DiffusionPrior.forward` computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from .layers import Stack, timestep_embedding
from .prior_blocks import Block, initialise, keys_and_values, longest, require_caption, require_shape
from .prior_cache import PriorCache, additive, causal_mask, prefill_mask, step_mask

# Positions behind the caption's, counted from the end.
_POOLED, _TIME, _IMAGE, _QUERY = -4, -3, -2, -1
EXTRA_TOKENS = 4


@dataclass(frozen=True)
class DiffusionPriorConfig:
    """Shape of a diffusion prior; the defaults are those of Karlo and Kandinsky (1.0B parameters).

    Attributes:
        dim: width D of the CLIP image embedding and of the text embedding z_t.
        text_dim: width of the caption's token features.
        width, layers, heads: of the transformer.
        text_length: number of caption positions L.
        mlp_ratio: hidden width of the MLPs over ``width``.
    """

    dim: int
    text_dim: int
    width: int = 2048
    layers: int = 20
    heads: int = 32
    text_length: int = 77
    mlp_ratio: float = 4.0

    kind: ClassVar[str] = "diffusion prior"

    def __post_init__(self) -> None:
        require_shape(
            self.kind, self, "dim", "text_dim", "width", "layers", "heads", "text_length", "mlp_ratio"
        )


class DiffusionPrior(nn.Module):
    """Caption and noised image embedding → what the network was trained to predict (x0 in unCLIP).

    Image embeddings go in and come out standardised (``EmbeddingSpace.standardise``); z_t as CLIP gives it.
    """

    def __init__(self, config: DiffusionPriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_in = nn.Linear(config.text_dim, width)
        self.pooled_in = nn.Linear(config.dim, width)
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.image_in = nn.Linear(config.dim, width)
        self.query = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(config.text_length + EXTRA_TOKENS, width))
        self.blocks: Stack[Block] = Stack(
            Block(width, config.heads, config.mlp_ratio) for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)
        nn.init.zeros_(self.query)  # its position tells it apart
        initialise(self.blocks, self.positions)

    # --- the whole sequence at once: training ---

    def forward(
        self, x: Tensor, t: Tensor, text_tokens: Tensor, text_pooled: Tensor, text_mask: Tensor
    ) -> Tensor:
        """One full pass.

        Args:
            x: noised image embeddings [B, D].
            t: timesteps [B], in units of training steps.
            text_tokens: caption features [B, N, text_dim], N ≤ L; missing positions count as padding.
            text_pooled: z_t, [B, D].
            text_mask: [B, N] bool, False for padding, which no token attends.

        Returns:
            [B, D].

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        batch = len(text_tokens)
        if x.shape != (batch, self.config.dim) or t.shape != (batch,):
            raise ValueError(
                f"diffusion prior: for {batch} captions expected x [{batch}, {self.config.dim}] and t "
                f"[{batch}], found {list(x.shape)} and {list(t.shape)}"
            )
        tokens = [
            self._prefix_tokens(text_tokens, text_pooled),
            self._time_tokens(t)[:, None],
            self._image_tokens(x[:, None]),
            self._query_token().expand(batch, 1, -1),
        ]
        h = torch.cat(tokens, dim=1)  # [B, N + 4, W]
        mask = causal_mask(F.pad(text_mask, (0, EXTRA_TOKENS), value=True))
        for block in self.blocks:
            h = block(h, mask)
        return self.out(self.out_norm(h[:, -1]))

    # --- the same in two parts: sampling ---

    @torch.no_grad()
    def prefill(
        self,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
        timesteps: Tensor,
    ) -> PriorCache:
        """Everything that the sampling state does not reach, computed once.

        Captions are cut to the longest valid one of the batch: padding has exactly zero attention weight.

        Args:
            text_tokens, text_pooled, text_mask: as in :meth:`forward`, for G captions.
            timesteps: [S], what the network is told at each sampling step.

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        if timesteps.ndim != 1 or not len(timesteps):
            raise ValueError(
                f"diffusion prior: timesteps must be [S], one a step, found {list(timesteps.shape)}"
            )
        end = longest(text_mask)
        time = self._time_tokens(timesteps.to(self.query.device))  # [S, W]
        tokens = [
            self._prefix_tokens(text_tokens[:, :end], text_pooled),
            repeat(time, "s w -> g s w", g=len(text_tokens)),
        ]
        h = torch.cat(tokens, dim=1)  # [G, P + S, W], P = end + 1
        valid = F.pad(text_mask[:, :end], (0, 1), value=True)  # [G, P]
        mask = additive(prefill_mask(valid, len(timesteps)), h.dtype)

        return PriorCache(keys_and_values(self.blocks, h, mask), valid)

    @torch.no_grad()
    def step(self, x: Tensor, step: int | Tensor, cache: PriorCache) -> Tensor:
        """What :meth:`forward` gives at ``timesteps[step]`` of the cache.

        The candidates of a caption are rows of one attention call over its prefix, which they share.

        Args:
            x: noised image embeddings [G, D], or [G, M, D] for M candidates of each of the cache's captions.
            step: index into the timesteps of the cache, see ``PriorCache.at``.

        Returns:
            Predictions in the shape of ``x``.

        Raises:
            ValueError: a shape or a step that does not fit the cache.
        """
        if x.ndim not in (2, 3) or (x.shape[0], x.shape[-1]) != (len(cache), self.config.dim):
            raise ValueError(
                f"diffusion prior: for a cache of {len(cache)} captions x must be [{len(cache)}, "
                f"{self.config.dim}] or [{len(cache)}, candidates, {self.config.dim}], found {list(x.shape)}"
            )
        cache.require_step(step)
        images = self._image_tokens(x if x.ndim == 3 else x[:, None])  # [G, M, W]
        candidates = images.shape[1]
        h = torch.cat([images, self._query_token().expand_as(images)], dim=1)  # [G, 2M, W]
        mask = additive(step_mask(cache.valid, candidates), h.dtype)  # [G, 1, 2M, P + 1 + 2M]
        for index, block in enumerate(self.blocks):
            q, own = block.project(h)
            kv = torch.cat([*cache.at(index, step), own], dim=3)  # [2, G, H, P + 1 + 2M, C]
            if index == len(self.blocks) - 1:  # only the queries' rows are read
                h, q, mask = h[:, candidates:], q[:, :, candidates:], mask[:, :, candidates:]
            h = block.finish(h, q, kv, mask)
        return self.out(self.out_norm(h)).reshape(x.shape)

    # --- tokens ---

    def _prefix_tokens(self, text_tokens: Tensor, text_pooled: Tensor) -> Tensor:
        """Caption and z_t, [B, N + 1, W]."""
        dtype = self.query.dtype
        caption = self.text_in(text_tokens.to(dtype)) + self.positions[: text_tokens.shape[1]]
        pooled = self.pooled_in(text_pooled.to(dtype)) + self.positions[_POOLED]
        return torch.cat([caption, pooled[:, None]], dim=1)

    def _time_tokens(self, t: Tensor) -> Tensor:
        """[S] → [S, W]."""
        h = timestep_embedding(t, self.config.width).to(self.query.dtype)
        return self.time_embed(h) + self.positions[_TIME]

    def _image_tokens(self, x: Tensor) -> Tensor:
        """[B, M, D] → [B, M, W]."""
        return self.image_in(x.to(self.query.dtype)) + self.positions[_IMAGE]

    def _query_token(self) -> Tensor:
        return self.query + self.positions[_QUERY]

    def _check_text(self, tokens: Tensor, pooled: Tensor, mask: Tensor) -> None:
        config = self.config
        require_caption(
            "diffusion prior",
            tokens,
            pooled,
            mask,
            length=config.text_length,
            width=config.text_dim,
            dim=config.dim,
        )
