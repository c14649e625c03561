"""The diffusion prior of DALLE2-pytorch, of which LAION published trained weights.

Source: lucidrains/DALLE2-pytorch, `dalle2_pytorch.py` (`DiffusionPriorNetwork`, `CausalTransformer`). It
differs from Karlo's (``diffusion_prior.py``) in almost every part: learned vectors stand for padding and
are attended, the heads share one key and value and attend by cosine similarity, positions are relative (a
bias and rotations), and the unconditional branch drops the noised image as well, so that its output depends
on the timestep only. The config also names what earlier versions of the package computed instead.

As in Karlo's, caption, z_t and timestep do not see the sampling state: :meth:`Dalle2Prior.prefill` passes
them once for all steps, and :meth:`Dalle2Prior.step` two tokens a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .dalle2_blocks import DOT_PRODUCT_BIAS, Block, GainNorm, Positions, RelativeBias, stabilised
from .layers import Stack
from .prior_blocks import require_caption
from .prior_cache import PriorCache, causal_mask, prefill_mask, step_mask
from .sizes import require_sizes

_ROWS_AT_ONCE = 64  # of the null branch; bounds its memory


@dataclass(frozen=True)
class Dalle2PriorConfig:
    """Shape of the network; the defaults are those of LAION's prior.

    Attributes:
        dim: width D of the CLIP embeddings, of the caption's features and of the transformer.
        layers, heads, head_dim: of the transformer.
        text_length: number of caption positions L.
        mlp_ratio: hidden width of the gated MLPs over ``dim``.
        timesteps: number of learned timestep embeddings.
        norm_in: the tokens are normalised before the first layer.
        normformer: the MLPs normalise their hidden layer (NormFormer, 2110.09456).
        rotary: queries and keys are rotated by their positions.
        cosine: queries and keys are compared by cosine similarity (from version 1.4.3 of the package on);
            otherwise by dot product over √head_dim, beside which the relative bias counts 128-fold.
        unconditional: there is a branch that sees nothing but the timestep (from version 1.9.0 on). Before,
            upstream marked what is to be dropped and then did not look at the mark, in training neither: its
            guidance changes nothing.
    """

    dim: int
    layers: int = 12
    heads: int = 12
    head_dim: int = 64
    text_length: int = 77
    mlp_ratio: float = 4.0
    timesteps: int = 1000
    norm_in: bool = False
    normformer: bool = True
    rotary: bool = True
    cosine: bool = True
    unconditional: bool = True

    def __post_init__(self) -> None:
        names = ("dim", "layers", "heads", "head_dim", "text_length", "mlp_ratio", "timesteps")
        require_sizes("DALLE2 prior", self, *names)
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"DALLE2 prior: head_dim is {self.head_dim}, expected an even number to rotate")


class Dalle2Prior(nn.Module):
    """Caption and noised image embedding → the clean image embedding.

    Image embeddings go in and come out as unit vectors times √D, z_t as a unit vector.
    """

    def __init__(self, config: Dalle2PriorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.time_embed = nn.Embedding(config.timesteps, dim)
        self.query = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.query)
        self.null_tokens = nn.Parameter(torch.zeros(config.text_length, dim))
        if config.unconditional:
            self.null_pooled = nn.Parameter(torch.zeros(dim))
            self.null_image = nn.Parameter(torch.zeros(dim))
        self.positions = Positions(config.head_dim) if config.rotary else None
        self.bias = RelativeBias(config.heads)
        self.norm_in = GainNorm(dim) if config.norm_in else nn.Identity()
        self.blocks: Stack[Block] = Stack(
            Block(
                dim,
                config.heads,
                config.head_dim,
                int(config.mlp_ratio * dim),
                config.normformer,
                config.cosine,
            )
            for _ in range(config.layers)
        )
        self.norm_out = GainNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)

    # --- the whole sequence at once: training, and the unconditional branch ---

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """One full pass.

        Args:
            x: noised image embeddings [B, D].
            t: timesteps [B], whole numbers.
            text_tokens: caption features [B, N, D], N ≤ L.
            text_pooled: z_t, [B, D].
            text_mask: [B, N] bool, False for padding, for which learned vectors stand.
            keep: [B] bool, False for the unconditional branch, which sees neither caption nor ``x``.

        Returns:
            [B, D].

        Raises:
            ValueError: shapes that do not fit the config or each other, or no unconditional branch.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        batch, dim = len(text_tokens), self.config.dim
        if x.shape != (batch, dim) or t.shape != (batch,):
            raise ValueError(
                f"DALLE2 prior: for {batch} captions expected x [{batch}, {dim}] and t [{batch}], found "
                f"{list(x.shape)} and {list(t.shape)}"
            )
        image = x.to(self.query.dtype)
        if keep is not None:
            self._require_unconditional()
            text_mask = text_mask & keep[:, None]
            text_pooled = torch.where(keep[:, None], text_pooled.to(image.dtype), self.null_pooled)
            image = torch.where(keep[:, None], image, self.null_image)
        tokens = [
            self._prefix_tokens(text_tokens, text_pooled, text_mask),
            self.time_embed(t)[:, None],
            image[:, None],
            self.query.expand(batch, 1, -1),
        ]
        h = self.norm_in(torch.cat(tokens, dim=1))  # [B, L + 4, D]
        where = torch.arange(h.shape[1], device=h.device)
        mask = self._mask(where, where, causal_mask(torch.ones_like(where, dtype=torch.bool)[None])[0, 0], h)
        for block in self.blocks:
            q, kv = block.project(h, self.positions, where)
            h = block.finish(h, q, kv, mask)
        return self.out(self.norm_out(stabilised(h[:, -1])))

    @torch.no_grad()
    def null_table(self, timesteps: Tensor) -> Tensor:
        """The unconditional prediction at each timestep: timesteps [S] → [S, D].

        Raises:
            ValueError: timesteps that are not [S], or no unconditional branch.
        """
        self._check_timesteps(timesteps)
        self._require_unconditional()
        rows = []
        for t in timesteps.to(self.query.device).split(_ROWS_AT_ONCE):
            nothing = self.query.new_zeros(len(t), self.config.dim)
            keep = torch.zeros(len(t), dtype=torch.bool, device=t.device)
            rows.append(self(nothing, t, nothing[:, None], nothing, keep[:, None], keep))
        return torch.cat(rows)

    # --- the same in two parts: sampling ---

    @torch.no_grad()
    def prefill(
        self,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor,
        timesteps: Tensor,
    ) -> PriorCache:
        """Everything that the sampling state does not reach, computed once; see ``DiffusionPrior.prefill``.

        Padding is not cut off: learned vectors stand for it, which all tokens attend.
        """
        self._check_text(text_tokens, text_pooled, text_mask)
        self._check_timesteps(timesteps)
        steps, captions = len(timesteps), len(text_tokens)
        time = self.time_embed(timesteps.to(self.query.device))  # [S, D]
        tokens = [
            self._prefix_tokens(text_tokens, text_pooled, text_mask),
            repeat(time, "s d -> g s d", g=captions),
        ]
        h = self.norm_in(torch.cat(tokens, dim=1))  # [G, P + S, D], P = L + 1
        prefix = h.shape[1] - steps
        # All timesteps stand at the one position behind the prefix.
        where = torch.arange(h.shape[1], device=h.device).clamp(max=prefix)
        valid = torch.ones(captions, prefix, dtype=torch.bool, device=h.device)
        mask = self._mask(where, where, prefill_mask(valid[:1], steps)[0, 0], h)
        layers = []
        for index, block in enumerate(self.blocks):
            q, kv = block.project(h, self.positions, where)
            layers.append(kv)
            if index < len(self.blocks) - 1:  # of the last layer nothing but keys and values is ever read
                h = block.finish(h, q, kv, mask)
        return PriorCache(tuple(layers), valid)

    @torch.no_grad()
    def step(self, x: Tensor, step: int | Tensor, cache: PriorCache) -> Tensor:
        """What :meth:`forward` gives at ``timesteps[step]`` of the cache; see ``DiffusionPrior.step``.

        Args:
            x: noised image embeddings [G, D], or [G, M, D] for M candidates of each of the cache's captions.
            step: index into the timesteps of the cache, see ``PriorCache.at``.

        Raises:
            ValueError: a shape or a step that does not fit the cache.
        """
        if x.ndim not in (2, 3) or (x.shape[0], x.shape[-1]) != (len(cache), self.config.dim):
            raise ValueError(
                f"DALLE2 prior: for a cache of {len(cache)} captions x must be [{len(cache)}, "
                f"{self.config.dim}] or [{len(cache)}, candidates, {self.config.dim}], found {list(x.shape)}"
            )
        cache.require_step(step)
        images = (x if x.ndim == 3 else x[:, None]).to(self.query.dtype)  # [G, M, D]
        candidates = images.shape[1]
        h = self.norm_in(torch.cat([images, self.query.expand_as(images)], dim=1))  # [G, 2M, D]
        # Positions: prefix 0 … P − 1, timestep P, every candidate's image P + 1 and query P + 2.
        own = torch.arange(2, device=h.device).repeat_interleave(candidates) + cache.prefix + 1  # [2M]
        keys = torch.cat([torch.arange(cache.prefix + 1, device=h.device), own])
        mask = self._mask(own, keys, step_mask(cache.valid[:1], candidates)[0, 0], h)
        for index, block in enumerate(self.blocks):
            q, kv = block.project(h, self.positions, own)
            kv = torch.cat([*cache.at(index, step), kv], dim=3)  # [2, G, 1, P + 1 + 2M, C]
            h = block.finish(h, q, kv, mask)
        return self.out(self.norm_out(stabilised(h[:, candidates:]))).reshape(x.shape)

    def _prefix_tokens(self, text_tokens: Tensor, text_pooled: Tensor, text_mask: Tensor) -> Tensor:
        """Caption and z_t, [B, L + 1, D]; learned vectors at the positions of padding."""
        missing = self.config.text_length - text_tokens.shape[1]
        tokens = F.pad(text_tokens.to(self.query.dtype), (0, 0, 0, missing))
        valid = F.pad(text_mask, (0, missing), value=False)[:, :, None]
        caption = torch.where(valid, tokens, self.null_tokens)
        return torch.cat([caption, text_pooled.to(caption.dtype)[:, None]], dim=1)

    def _mask(self, queries: Tensor, keys: Tensor, attended: Tensor, like: Tensor) -> Tensor:
        """Positions [Q] and [K] and which key each query attends [Q, K] → [H·Q, 1 + K], with the null key."""
        keys = F.pad(keys, (1, 0), value=-1)  # the null key counts as the position in front of all
        bias = self.bias(queries, keys)  # [H, Q, 1 + K]
        bias = (bias if self.config.cosine else DOT_PRODUCT_BIAS * bias).to(like.dtype)
        hidden = ~F.pad(attended, (1, 0), value=True)
        return rearrange(bias.masked_fill(hidden, float("-inf")), "h q k -> (h q) k")

    def _check_text(self, tokens: Tensor, pooled: Tensor, mask: Tensor) -> None:
        dim, length = self.config.dim, self.config.text_length
        require_caption("DALLE2 prior", tokens, pooled, mask, length=length, width=dim, dim=dim)

    def _require_unconditional(self) -> None:
        if not self.config.unconditional:
            raise ValueError(
                "DALLE2 prior: this version has no unconditional branch, so that it cannot be guided"
            )

    def _check_timesteps(self, timesteps: Tensor) -> None:
        if timesteps.ndim != 1 or not len(timesteps):
            raise ValueError(
                f"DALLE2 prior: timesteps must be [S], one a step, found {list(timesteps.shape)}"
            )
