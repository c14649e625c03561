"""What does not change while a prior samples, and the attention masks of its two parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PriorCache:
    """Keys and values that the sampling state does not reach, see the ``prefill`` of each prior.

    Attributes:
        layers: for each layer the keys and values [2, G, H, P + S, C] of P prefix tokens (trimmed captions
            and z_t) and of the timestep tokens of S sampling steps, for G captions; S is 0 where a prior
            has no timesteps.
        valid: [G, P] bool, False for padding.
    """

    layers: tuple[Tensor, ...]
    valid: Tensor

    def __len__(self) -> int:
        return self.valid.shape[0]

    @property
    def prefix(self) -> int:
        return self.valid.shape[1]

    @property
    def steps(self) -> int:
        return self.layers[0].shape[3] - self.prefix

    def at(self, layer: int, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """The prefix [2, G, H, P, C] and the timestep token of a step [2, G, H, 1, C].

        Args:
            step: an index, or a tensor [1] with it, which is read on its device.
        """
        keys_values, at = self.layers[layer], self.prefix + step
        if isinstance(at, Tensor):
            time = keys_values.index_select(3, at)
        else:
            time = keys_values[:, :, :, at : at + 1]
        return keys_values[:, :, :, : self.prefix], time

    def require_step(self, step: int | Tensor) -> None:
        """Raise a ValueError unless the cache has this step. One in a tensor is not looked at."""
        if not isinstance(step, Tensor) and not 0 <= step < self.steps:
            raise ValueError(f"prior cache: there is no step {step} in a cache of {self.steps} steps")

    def expand(self, captions: int) -> PriorCache:
        """One caption repeated, without copying; or the cache itself where it holds that many."""
        if len(self) == captions:
            return self
        if len(self) != 1:
            raise ValueError(f"prior cache: {len(self)} captions cannot be repeated to {captions}")
        layers = tuple(layer.expand(-1, captions, -1, -1, -1) for layer in self.layers)
        return replace(self, layers=layers, valid=self.valid.expand(captions, -1))

    def to(self, device: torch.device | str) -> PriorCache:
        return replace(
            self, layers=tuple(layer.to(device) for layer in self.layers), valid=self.valid.to(device)
        )

    @staticmethod
    def cat(first: PriorCache, second: PriorCache) -> PriorCache:
        """Join the captions of two caches of one network; the shorter prefix is padded (masked) in front."""
        if first.steps != second.steps:
            raise ValueError(
                f"prior cache: caches of {first.steps} and {second.steps} steps cannot be joined; make both "
                f"with the same timesteps"
            )
        longest = max(first.prefix, second.prefix)
        missing = [longest - cache.prefix for cache in (first, second)]
        # In front: the timestep tokens stay behind, and the positions are in the keys already.
        valid = [F.pad(c.valid, (n, 0)) for c, n in zip((first, second), missing, strict=True)]
        layers = tuple(
            torch.cat([F.pad(a, (0, 0, missing[0], 0)), F.pad(b, (0, 0, missing[1], 0))], dim=1)
            for a, b in zip(first.layers, second.layers, strict=True)
        )
        return replace(first, layers=layers, valid=torch.cat(valid))


# --- masks: bool, True where a query (row) attends a key (column) ---


def causal_mask(valid: Tensor) -> Tensor:
    """[B, N] validity of keys → [B, 1, N, N].

    Padding attends itself whatever comes before it, since a softmax over nothing is NaN; nothing reads it.
    """
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return torch.ones_like(itself).tril() & (valid[:, None, None, :] | itself)


def prefill_mask(valid: Tensor, steps: int) -> Tensor:
    """[G, P] validity of the prefix → [G, 1, P + S, P + S]: a timestep token attends no other timestep."""
    mask = causal_mask(F.pad(valid, (0, steps), value=True))
    mask[:, :, -steps:, -steps:] = torch.eye(steps, dtype=torch.bool, device=valid.device)
    return mask


def step_mask(valid: Tensor, candidates: int) -> Tensor:
    """[G, P] validity of the prefix → [G, 1, 2M, P + 1 + 2M] for M candidates' images, then their M queries.

    All attend the prefix and the timestep; an image also itself, a query its image and itself.
    """
    itself = torch.eye(candidates, dtype=torch.bool, device=valid.device)
    images = torch.cat([itself, torch.zeros_like(itself)], dim=1)
    queries = torch.cat([itself, itself], dim=1)
    own = torch.cat([images, queries])  # [2M, 2M]
    shared = F.pad(valid, (0, 1), value=True)  # [G, P + 1]
    shared = repeat(shared, "g k -> g 1 q k", q=2 * candidates)
    return torch.cat([shared, repeat(own, "q k -> g 1 q k", g=len(valid))], dim=3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where to attend, −inf elsewhere: converted once instead of in every layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
