"""The unconditional branches of priors, which outlive a call: made once for a network and its timesteps."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..acceleration.kept_copies import derived
from ..embeddings.space import TextFeatures
from ..networks.dalle2_prior import Dalle2Prior
from ..networks.diffusion_prior import DiffusionPrior
from ..networks.one_pass_prior import OnePassPrior
from ..networks.prior_cache import PriorCache
from .rows import device_and_dtype

Null = TypeVar("Null", PriorCache, Tensor)

_KEPT = 4  # null branches of a network: a few numbers of steps used in turn


class NullBranches:
    """The unconditional branches of a network: constants of its weights and of the timesteps.

    They rest in ordinary memory: a GPU is left to what runs, and whoever unloads the network there knows
    nothing of them.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    @classmethod
    def of(cls, network: DiffusionPrior | Dalle2Prior | OnePassPrior, packed: bool) -> NullBranches:
        return derived(network).setdefault((cls, packed), cls())  # which round differently

    def prefix(self, network: DiffusionPrior, null: TextFeatures, timesteps: Tensor) -> PriorCache:
        """The unconditional prefix."""
        return self._get(
            (tuple(timesteps.tolist()), *(_digest(t) for t in (null.tokens, null.pooled, null.mask))),
            lambda: network.prefill(null.tokens, null.pooled, null.mask, timesteps),
            null.tokens.device,
        )

    def table(self, network: Dalle2Prior, timesteps: Tensor) -> Tensor:
        """The unconditional predictions [S, D] at these timesteps."""
        device, _ = device_and_dtype(network)
        return self._get(tuple(timesteps.tolist()), lambda: network.null_table(timesteps), device)

    def _get(self, key: Hashable, make: Callable[[], Null], device: torch.device) -> Null:
        if key not in self._kept:
            self._kept[key] = make().to("cpu")
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key].to(device)


def _digest(tensor: Tensor) -> bytes:
    tensor = tensor.detach().float().contiguous().cpu()
    return hashlib.sha256(tensor.numpy().tobytes()).digest()
