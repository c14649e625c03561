"""The diffusion prior: a causal transformer from a caption and a noised CLIP image embedding to the clean one.

Sources: unCLIP (2204.06125), section 2.2; the layout is that of Karlo (kakaobrain/karlo, `prior_model.py`), which
Kandinsky shares. Tokens, in causal order:

    caption tokens · z_t · timestep · noised z_i · query

and the query's output is the prediction. While sampling, only the last two change with the sampling state:
a caption token sees captions only, z_t sees them and itself, the timestep token sees those and itself. So
:meth:`DiffusionPrior.prefill` passes [caption, z_t] and the timestep tokens of *all* sampling steps once, and
:meth:`DiffusionPrior.step` passes two tokens per candidate over their keys and values. Both together are exactly
:meth:`DiffusionPrior.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .layers import attention, timestep_embedding
from .packed import NOT_PACKED, PackedWeights, linear

# Tokens behind the caption: z_t, timestep, noised z_i, query.
EXTRA_TOKENS = 4


@dataclass(frozen=True)
class DiffusionPriorConfig:
    """Shape of a diffusion prior; the defaults are Karlo's (1.02B parameters with ``dim`` and ``text_dim`` 768).

    Attributes:
        dim: width D of the CLIP image embedding, and of the text embedding z_t.
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

    def __post_init__(self) -> None:
        for name in ("dim", "text_dim", "width", "layers", "heads", "text_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"diffusion prior: {name} is {getattr(self, name)}, expected at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"diffusion prior: width {self.width} is not a multiple of the {self.heads} heads; change one"
            )


@dataclass(frozen=True, eq=False)
class PriorCache:
    """What does not change while a prior samples: see :meth:`DiffusionPrior.prefill`.

    Attributes:
        layers: for each layer the keys and values [2, G, H, P + S, C] of P prefix tokens (trimmed captions and
            z_t) and of the timestep tokens of S sampling steps, for G captions.
        valid: [G, P] bool, False for padding.
        packed: weights with which :meth:`DiffusionPrior.step` runs.
    """

    layers: tuple[Tensor, ...]
    valid: Tensor
    packed: PackedWeights = NOT_PACKED

    def __len__(self) -> int:
        return self.valid.shape[0]

    @property
    def prefix(self) -> int:
        return self.valid.shape[1]

    @property
    def steps(self) -> int:
        return self.layers[0].shape[3] - self.prefix

    def at(self, layer: int, step: int) -> tuple[Tensor, Tensor]:
        """Views of the prefix [2, G, H, P, C] and of the timestep token of a step [2, G, H, 1, C]."""
        keys_values, at = self.layers[layer], self.prefix + step
        return keys_values[:, :, :, : self.prefix], keys_values[:, :, :, at : at + 1]

    def expand(self, captions: int) -> PriorCache:
        """One caption repeated, without copying; or the cache itself where it holds that many."""
        if len(self) == captions:
            return self
        if len(self) != 1:
            raise ValueError(f"prior cache of {len(self)} captions cannot be repeated to {captions}")
        layers = tuple(layer.expand(-1, captions, -1, -1, -1) for layer in self.layers)
        return replace(self, layers=layers, valid=self.valid.expand(captions, -1))

    @staticmethod
    def cat(first: PriorCache, second: PriorCache) -> PriorCache:
        """Join the captions of two caches of the same network and steps; the shorter prefix is padded in front."""
        if first.steps != second.steps or first.packed is not second.packed:
            raise ValueError(
                f"prior caches of {first.steps} and {second.steps} steps cannot be joined: make both with the "
                f"same timesteps and weights"
            )
        prefix = max(first.prefix, second.prefix)
        # In front, so that prefix and timestep tokens stay where they are; positions are already in the keys.
        valid = torch.cat([F.pad(cache.valid, (prefix - cache.prefix, 0)) for cache in (first, second)])
        layers = tuple(
            torch.cat([_pad_front(a, prefix - first.prefix), _pad_front(b, prefix - second.prefix)], dim=1)
            for a, b in zip(first.layers, second.layers, strict=True)
        )
        return replace(first, layers=layers, valid=valid)


def _pad_front(keys_values: Tensor, tokens: int) -> Tensor:
    return F.pad(keys_values, (0, 0, tokens, 0)) if tokens else keys_values


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP with exact GELU. ``qkv`` holds all queries, then all keys, then all values."""

    def __init__(self, config: DiffusionPriorConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def project(self, x: Tensor, packed: PackedWeights = NOT_PACKED) -> tuple[Tensor, Tensor]:
        """x [B, N, W] → queries [B, H, N, C], and keys and values [2, B, H, N, C]."""
        qkv = linear(self.qkv, self.attention_norm(x), packed)
        qkv = rearrange(qkv, "b n (three h c) -> three b h n c", three=3, h=self.heads)
        return qkv[0], qkv[1:]

    def finish(
        self,
        x: Tensor,
        queries: Tensor,
        keys_values: Tensor,
        mask: Tensor,
        packed: PackedWeights = NOT_PACKED,
    ) -> Tensor:
        """The residual stream x [B, N, W] after attention of its queries [B, H, N, C], and after the MLP."""
        x = x + linear(self.attention_out, attention(queries, keys_values[0], keys_values[1], mask), packed)
        hidden = F.gelu(linear(self.mlp_in, self.mlp_norm(x), packed))
        return x + linear(self.mlp_out, hidden, packed)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        queries, keys_values = self.project(x)
        return self.finish(x, queries, keys_values, mask)


class DiffusionPrior(nn.Module):
    """Caption and noised image embedding → what the network was trained to predict (x0 in unCLIP).

    Embeddings go in and out standardised (``EmbeddingSpace.standardise``); z_t goes in as CLIP gives it.
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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)
        self._initialise()

    def _initialise(self) -> None:
        """Initial weights as in CLIP's text transformer (openai/CLIP, `model.py`)."""
        width, depth = self.config.width, self.config.layers
        nn.init.normal_(self.query, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in self.blocks:
            nn.init.normal_(block.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attention_out.weight, std=(2 * depth * width) ** -0.5)
            nn.init.normal_(block.mlp_in.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp_out.weight, std=(2 * depth * width) ** -0.5)
            for layer in (block.qkv, block.attention_out, block.mlp_in, block.mlp_out):
                nn.init.zeros_(layer.bias)

    # --- the whole sequence at once: training ---

    def forward(
        self, x: Tensor, t: Tensor, text_tokens: Tensor, text_pooled: Tensor, text_mask: Tensor
    ) -> Tensor:
        """One full pass.

        Args:
            x: noised image embeddings [B, D].
            t: timesteps [B], in units of training steps.
            text_tokens: caption features [B, N, text_dim] with N ≤ L; missing positions count as padding.
            text_pooled: z_t, [B, D].
            text_mask: [B, N] bool, False for padding, which no token attends.

        Returns:
            [B, D].

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        batch = text_tokens.shape[0]
        if x.shape != (batch, self.config.dim) or t.shape != (batch,):
            raise ValueError(
                f"diffusion prior: for {batch} captions expected x [{batch}, {self.config.dim}] and t [{batch}], "
                f"found {list(x.shape)} and {list(t.shape)}"
            )
        tokens = [
            self._prefix_tokens(text_tokens, text_pooled),
            self._time_tokens(t)[:, None],
            self._image_tokens(x[:, None]),
            self._query_token().expand(batch, 1, -1),
        ]
        h = torch.cat(tokens, dim=1)  # [B, N + 4, W]
        mask = _causal_mask(F.pad(text_mask, (0, EXTRA_TOKENS), value=True))  # [B, 1, N + 4, N + 4]
        for block in self.blocks:
            h = block(h, mask)
        return self.out(self.out_norm(h[:, -1]))

    # --- the same in two parts: sampling ---

    def prefill(
        self,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
        timesteps: Tensor,
        packed: PackedWeights = NOT_PACKED,
    ) -> PriorCache:
        """Everything that the sampling state does not reach, computed once.

        Captions are cut to the longest valid one: padding has exactly zero attention weight.

        Args:
            text_tokens, text_pooled, text_mask: as in :meth:`forward`, for G captions.
            timesteps: [S], what the network is told at each sampling step.
            packed: blocked weights of this network (see ``packed.pack_linears``), used here and in the steps.

        Returns:
            A cache for :meth:`step`.

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        if timesteps.ndim != 1 or len(timesteps) == 0:
            raise ValueError(f"diffusion prior: timesteps must be [S], found {list(timesteps.shape)}")
        longest = _longest(text_mask)
        text_tokens, text_mask = text_tokens[:, :longest], text_mask[:, :longest]

        captions, steps = text_tokens.shape[0], len(timesteps)
        time = repeat(self._time_tokens(timesteps.to(text_tokens.device)), "s w -> g s w", g=captions)
        h = torch.cat([self._prefix_tokens(text_tokens, text_pooled), time], dim=1)  # [G, P + S, W]
        valid = F.pad(text_mask, (0, 1), value=True)  # [G, P], P = longest + 1
        mask = _causal_mask(F.pad(valid, (0, steps), value=True))
        mask[:, :, -steps:, -steps:] = torch.eye(steps, dtype=torch.bool, device=mask.device)
        mask = _additive(mask, h.dtype)

        layers: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            queries, keys_values = block.project(h, packed)
            layers.append(keys_values)
            if index < len(self.blocks) - 1:  # of the last layer only keys and values are ever read
                h = block.finish(h, queries, keys_values, mask, packed)
        return PriorCache(tuple(layers), valid, packed)

    def step(self, x: Tensor, step: int, cache: PriorCache) -> Tensor:
        """What :meth:`forward` gives at ``timesteps[step]`` of the cache.

        All candidates of a caption are queries of one attention call over its prefix, which is read once.

        Args:
            x: noised image embeddings [G, D], or [G, M, D] for M candidates of each of the cache's captions.
            step: index into the timesteps of the cache.

        Returns:
            Predictions in the shape of ``x``.

        Raises:
            ValueError: a shape or step that does not fit the cache.
        """
        if x.ndim not in (2, 3) or (x.shape[0], x.shape[-1]) != (len(cache), self.config.dim):
            raise ValueError(
                f"diffusion prior: x must be [{len(cache)}, {self.config.dim}] or [{len(cache)}, candidates, "
                f"{self.config.dim}] for a cache of {len(cache)} captions, found {list(x.shape)}"
            )
        if not 0 <= step < cache.steps:
            raise ValueError(f"diffusion prior: step {step} is not one of the cache's {cache.steps} steps")
        images = self._image_tokens(x if x.ndim == 3 else x[:, None], cache.packed)  # [G, M, W]
        candidates = images.shape[1]
        h = torch.cat([images, self._query_token().expand_as(images)], dim=1)  # [G, 2M, W]
        mask = _additive(_candidates_mask(cache.valid, candidates), h.dtype)  # [G, 1, 2M, P + 1 + 2M]
        for index, block in enumerate(self.blocks):
            queries, own = block.project(h, cache.packed)
            keys_values = torch.cat([*cache.at(index, step), own], dim=3)  # [2, G, H, P + 1 + 2M, C]
            if index == len(self.blocks) - 1:  # only the queries' outputs are read
                h, queries, mask = h[:, candidates:], queries[:, :, candidates:], mask[:, :, candidates:]
            h = block.finish(h, queries, keys_values, mask, cache.packed)
        return linear(self.out, self.out_norm(h), cache.packed).reshape(x.shape)

    # --- tokens ---

    def _prefix_tokens(self, text_tokens: Tensor, text_pooled: Tensor) -> Tensor:
        """Caption and z_t, [B, N + 1, W]."""
        dtype = self.query.dtype
        caption = self.text_in(text_tokens.to(dtype)) + self.positions[: text_tokens.shape[1]]
        pooled = self.pooled_in(text_pooled.to(dtype)) + self.positions[-EXTRA_TOKENS]
        return torch.cat([caption, pooled[:, None]], dim=1)

    def _time_tokens(self, t: Tensor) -> Tensor:
        """[S] → [S, W]."""
        embedding = timestep_embedding(t, self.config.width).to(self.query.dtype)
        return self.time_embed(embedding) + self.positions[-3]

    def _image_tokens(self, x: Tensor, packed: PackedWeights = NOT_PACKED) -> Tensor:
        """[B, M, D] → [B, M, W]."""
        return linear(self.image_in, x.to(self.query.dtype), packed) + self.positions[-2]

    def _query_token(self) -> Tensor:
        return self.query + self.positions[-1]

    def _check_text(self, tokens: Tensor, pooled: Tensor, mask: Tensor) -> None:
        config = self.config
        batch, length = (tokens.shape[0], tokens.shape[1]) if tokens.ndim == 3 else (0, 0)
        if tokens.ndim != 3 or tokens.shape[2] != config.text_dim or length > config.text_length:
            raise ValueError(
                f"diffusion prior: caption features must be [captions, up to {config.text_length}, "
                f"{config.text_dim}], found {list(tokens.shape)}. Use the CLIP model that belongs to this prior"
            )
        if pooled.shape != (batch, config.dim) or mask.shape != (batch, length) or mask.dtype != torch.bool:
            raise ValueError(
                f"diffusion prior: for caption features {list(tokens.shape)} expected a text embedding "
                f"[{batch}, {config.dim}] and a bool mask [{batch}, {length}], found {list(pooled.shape)} and "
                f"{mask.dtype} {list(mask.shape)}"
            )


def _causal_mask(valid: Tensor) -> Tensor:
    """[B, N] validity of keys → [B, 1, N, N], True: attend.

    A padding token attends itself whatever precedes it, since a softmax over nothing is NaN; its output is read
    by none.
    """
    length = valid.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    causal = torch.ones_like(itself).tril()
    return (causal & (valid[:, None, None, :] | itself)).contiguous()


def _candidates_mask(valid: Tensor, candidates: int) -> Tensor:
    """[G, P] validity of the prefix → [G, 1, 2M, P + 1 + 2M] for M candidates' images, then M queries.

    All attend the prefix and the timestep. Of the 2M own tokens an image attends itself, a query its image and
    itself.
    """
    itself = torch.eye(candidates, dtype=torch.bool, device=valid.device)
    own = torch.cat(
        [
            torch.cat([itself, torch.zeros_like(itself)], dim=1),
            torch.cat([itself, itself], dim=1),
        ]
    )  # [2M, 2M]
    shared = F.pad(valid, (0, 1), value=True)  # [G, P + 1]
    rows = 2 * candidates
    return torch.cat(
        [
            repeat(shared, "g k -> g 1 rows k", rows=rows),
            repeat(own, "q k -> g 1 q k", g=valid.shape[0]),
        ],
        dim=3,
    )


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where to attend, −inf elsewhere: converted once rather than in every layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _longest(mask: Tensor) -> int:
    """Number of positions up to the last valid one of any row."""
    used = mask.any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
