"""The autoregressive prior: a causal transformer from a caption to the codes of an image embedding.

Source: unCLIP (2204.06125), section 2.2. The image embedding is written as K codes, its PCA coefficients in
buckets (``embeddings.codec``), by decreasing variance. Tokens, in causal order:

    caption tokens · z_t · match · code 1 · … · code K−1

where the match token is the bucket of z_i·z_t, and the outputs from the match token on are the logits of
codes 1 … K. The paper puts the match token in front; behind z_t it leaves the caption's keys and values
independent of it, so :meth:`AutoregressivePrior.prefill` computes them once for all candidates, and
:meth:`AutoregressivePrior.step` passes one token a code: together exactly what
:meth:`AutoregressivePrior.forward` computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import Stack
from .prior_blocks import Block, initialise, keys_and_values, longest, require_caption, require_shape
from .prior_cache import PriorCache, additive, causal_mask
from .sizes import require_sizes

_NAME = "autoregressive prior"


@dataclass(frozen=True)
class AutoregressivePriorConfig:
    """Shape of an autoregressive prior; the defaults are the paper's (table 3 and section 2.2).

    Attributes:
        dim: width D of the CLIP image embedding and of the text embedding z_t.
        text_dim: width of the caption's token features.
        components: number of PCA components K, and so of codes.
        buckets: of each code.
        match_buckets: of the dot product z_i·z_t; even, since sampling draws from the upper half. The paper
            does not tell theirs.
        width, layers, heads: of the transformer.
        text_length: number of caption positions L.
        mlp_ratio: hidden width of the MLPs over ``width``.
        text_codes: also tell each token the bucket of z_t's coefficient along the component that it predicts.
            Not in the paper: a small prior would need far more samples to learn K ways to read z_t.
    """

    dim: int
    text_dim: int
    components: int = 319
    buckets: int = 1024
    match_buckets: int = 64
    width: int = 1664
    layers: int = 24
    heads: int = 26
    text_length: int = 77
    mlp_ratio: float = 4.0
    text_codes: bool = False

    def __post_init__(self) -> None:
        require_shape(
            _NAME,
            self,
            "dim",
            "text_dim",
            "components",
            "width",
            "layers",
            "heads",
            "text_length",
            "mlp_ratio",
        )
        if self.components > self.dim:
            raise ValueError(f"{_NAME}: components is {self.components}, expected at most dim, {self.dim}")
        require_sizes(_NAME, self, "buckets", "match_buckets")
        if self.buckets < 2:
            raise ValueError(f"{_NAME}: buckets is {self.buckets}, expected at least 2")
        if self.match_buckets < 2 or self.match_buckets % 2:
            raise ValueError(f"{_NAME}: match_buckets is {self.match_buckets}, expected an even number")


class Codebook(nn.Module):
    """The fitted ``EmbeddingCodec`` of a prior: what its codes mean. In the checkpoint, but not trained."""

    pca_mean: Tensor
    pca_components: Tensor
    text_edges: Tensor

    def __init__(self, config: AutoregressivePriorConfig) -> None:
        super().__init__()
        k, v, m = config.components, config.buckets, config.match_buckets
        shapes = {
            "pca_mean": (config.dim,),
            "pca_components": (k, config.dim),
            "pca_variances": (k,),
            "pca_total_variance": (),
            "code_edges": (k, v - 1),
            "code_centres": (k, v),
            "text_edges": (k, v - 1),
            "text_centres": (k, v),
            "match_edges": (m - 1,),
            "match_centres": (m,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def text_codes(self, text_pooled: Tensor) -> Tensor:
        """z_t [B, D] → buckets of its coefficients [B, K] int64, see ``EmbeddingCodec.encode_text``."""
        # Training's autocast would round the product, and tell other codes than sampling does.
        with torch.autocast(text_pooled.device.type, enabled=False):
            coefficients = (text_pooled.float() - self.pca_mean.float()) @ self.pca_components.float().T
        codes = torch.searchsorted(
            self.text_edges.float(), rearrange(coefficients, "b k -> k b").contiguous()
        )
        return rearrange(codes, "k b -> b k")


class CodeCache:
    """Keys and values of R rows that are being sampled: of their prefix, and room for their K tokens.

    A step writes into it; ``filled`` tells how many tokens it holds behind the prefix.
    """

    def __init__(self, prefix: PriorCache, text_codes: Tensor, rows: int) -> None:
        """``rows`` rows for each of the prefix's G captions, neighbours: R = G·rows. Text codes: [G, K]."""
        tokens = text_codes.shape[1]
        self.text_codes = text_codes.repeat_interleave(rows, dim=0)  # [R, K]
        self.prefix, self.filled = prefix.prefix, 0
        self.layers = tuple(
            F.pad(layer, (0, 0, 0, tokens)).repeat_interleave(rows, dim=1) for layer in prefix.layers
        )  # [2, R, H, P + K, C]
        valid = F.pad(prefix.valid, (0, tokens), value=True).repeat_interleave(rows, dim=0)
        self.mask = additive(valid[:, None, None, :], self.layers[0].dtype)  # [R, 1, 1, P + K]

    def __len__(self) -> int:
        return self.mask.shape[0]

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Add a token's [2, R, H, 1, C] to a layer; returns all so far [2, R, H, N, C] and their mask."""
        end = self.prefix + self.filled + 1
        self.layers[layer][:, :, :, end - 1 : end] = kv
        return self.layers[layer][:, :, :, :end], self.mask[..., :end]


class AutoregressivePrior(nn.Module):
    """Caption, match and the codes so far → logits of the next code. z_t goes in as CLIP gives it."""

    def __init__(self, config: AutoregressivePriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_in = nn.Linear(config.text_dim, width)
        self.pooled_in = nn.Linear(config.dim, width)
        self.match_in = nn.Embedding(config.match_buckets, width)
        self.code_in = nn.Embedding(config.buckets, width)
        self.text_code_in = nn.Embedding(config.buckets, width) if config.text_codes else None
        self.positions = nn.Parameter(torch.empty(config.text_length + 1 + config.components, width))
        self.blocks: Stack[Block] = Stack(
            Block(width, config.heads, config.mlp_ratio) for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.buckets)
        self.codebook = Codebook(config)
        for module in self.children():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        initialise(self.blocks, self.positions)

    # --- the whole sequence at once: training ---

    def forward(
        self, codes: Tensor, match: Tensor, text_tokens: Tensor, text_pooled: Tensor, text_mask: Tensor
    ) -> Tensor:
        """One full pass, with the true codes before each (teacher forcing).

        Args:
            codes: [B, K] int64; the last one is not read.
            match: buckets of z_i·z_t, [B] int64.
            text_tokens: caption features [B, N, text_dim], N ≤ L; missing positions count as padding.
            text_pooled: z_t, [B, D].
            text_mask: [B, N] bool, False for padding, which no token attends.

        Returns:
            Logits of every code given those before it, [B, K, buckets].

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        batch, count = len(text_tokens), self.config.components
        if codes.shape != (batch, count) or match.shape != (batch,):
            raise ValueError(
                f"{_NAME}: for {batch} captions expected codes [{batch}, {count}] and match [{batch}], found "
                f"{list(codes.shape)} and {list(match.shape)}"
            )
        read = torch.cat([self.match_in(match)[:, None], self.code_in(codes[:, :-1])], dim=1)  # [B, K, W]
        places = self._places(slice(None), self.codebook.text_codes(text_pooled))
        h = torch.cat([self._prefix_tokens(text_tokens, text_pooled), read + places], dim=1)  # [B, N+1+K, W]
        mask = causal_mask(F.pad(text_mask, (0, 1 + count), value=True))
        for block in self.blocks:
            h = block(h, mask)
        return self.out(self.out_norm(h[:, -count:]))

    # --- token by token: sampling ---

    @torch.no_grad()
    def prefill(
        self,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
    ) -> PriorCache:
        """Keys and values of G captions and their z_t.

        Captions are cut to the longest valid one of the batch: padding has exactly zero attention weight.

        Args:
            text_tokens, text_pooled, text_mask: as in :meth:`forward`.

        Raises:
            ValueError: shapes that do not fit the config or each other.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        end = longest(text_mask)
        h = self._prefix_tokens(text_tokens[:, :end], text_pooled)  # [G, P, W], P = end + 1
        valid = F.pad(text_mask[:, :end], (0, 1), value=True)  # [G, P]
        mask = additive(causal_mask(valid), h.dtype)
        return PriorCache(keys_and_values(self.blocks, h, mask), valid)

    def start(self, prefix: PriorCache, text_pooled: Tensor, candidates: int) -> CodeCache:
        """Room to sample that many rows for each caption of a prefix, whose z_t is ``text_pooled`` [G, D]."""
        return CodeCache(prefix, self.codebook.text_codes(text_pooled), candidates)

    @torch.no_grad()
    def step(self, previous: Tensor, cache: CodeCache) -> Tensor:
        """Logits of the next code, what :meth:`forward` gives there.

        Args:
            previous: [R] int64, at the first step the match buckets, then the codes before this one.
            cache: of :meth:`start`; takes the token in.

        Returns:
            [R, buckets].

        Raises:
            ValueError: a number of rows that does not fit the cache, or a cache that is full.
        """
        index = cache.filled
        if previous.shape != (len(cache),):
            raise ValueError(
                f"{_NAME}: for a cache of {len(cache)} rows expected as many codes, found shape "
                f"{list(previous.shape)}"
            )
        if index >= self.config.components:
            raise ValueError(f"{_NAME}: all {index} codes are there already; start a new cache")
        read = self.code_in if index else self.match_in
        h = (read(previous) + self._places(index, cache.text_codes))[:, None]  # [R, 1, W]
        for number, block in enumerate(self.blocks):
            q, own = block.project(h)
            h = block.finish(h, q, *cache.extend(number, own))
        cache.filled += 1
        return self.out(self.out_norm(h[:, 0]))

    # --- tokens ---

    def _prefix_tokens(self, text_tokens: Tensor, text_pooled: Tensor) -> Tensor:
        """Caption and z_t, [B, N + 1, W]."""
        dtype = self.positions.dtype
        caption = self.text_in(text_tokens.to(dtype)) + self.positions[: text_tokens.shape[1]]
        pooled = self.pooled_in(text_pooled.to(dtype)) + self.positions[self.config.text_length]
        return torch.cat([caption, pooled[:, None]], dim=1)

    def _places(self, index: int | slice, text_codes: Tensor) -> Tensor:
        """What tells the tokens that predict these components from each other: [W] or [B, …, W]."""
        places = self.positions[self.config.text_length + 1 :][index]
        return places if self.text_code_in is None else places + self.text_code_in(text_codes[:, index])

    def _check_text(self, tokens: Tensor, pooled: Tensor, mask: Tensor) -> None:
        config = self.config
        require_caption(
            _NAME, tokens, pooled, mask, length=config.text_length, width=config.text_dim, dim=config.dim
        )
