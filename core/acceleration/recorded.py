"""U-Nets and diffusion priors whose calls on a GPU are recorded, see ``cuda_graphs``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..networks.dalle2_prior import Dalle2Prior
from ..networks.dalle2_unet import Dalle2UNet
from ..networks.diffusion_prior import DiffusionPrior
from ..networks.prior_cache import PriorCache
from ..networks.unet import UNet, UNetCondition
from ..networks.unet_pair import UNetPair
from .cuda_graphs import Pool, Recorder
from .twins import twin_of

Network = TypeVar("Network", UNet, Dalle2UNet, UNetPair, DiffusionPrior, Dalle2Prior)

_RECORDED: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()  # each with what it was made of


def recorded_copy(network: Network, pool: Pool | None = None) -> Network:
    """A network over the same parameters that computes the same, recorded when it is first called.

    Of a prior the steps are recorded, not what precedes them. When the network is moved to another device or
    type, it lets go of its recordings.

    Args:
        network: may be a ``compiled_copy``, of which the compiled calls are recorded.
        pool: as of :class:`Recorder`.
    """
    if isinstance(network, UNetPair):
        pool = torch.cuda.graph_pool_handle() if pool is None and torch.cuda.is_available() else pool
        parts = {"first": network.first, "last": network.last}
        pair = twin_of(network, {name: recorded_copy(part, pool) for name, part in parts.items()})
        _RECORDED[pair] = network
        return pair
    twin = twin_of(network)
    recorder: Recorder[Any] = Recorder(lambda inputs: inputs.given_to(network), network.parameters(), pool)
    if isinstance(twin, (UNet, Dalle2UNet)):
        twin.forward = _recorded_forward(recorder)  # type: ignore[method-assign]
    else:
        twin.step = _recorded_step(recorder)  # type: ignore[assignment, method-assign]
    # What nn.Module.to and its like call.
    twin._apply = _forgetting_after(twin._apply, recorder)  # type: ignore[method-assign]
    _RECORDED[twin] = network
    return twin


def is_recorded(network: nn.Module) -> bool:
    """Whether this is a :func:`recorded_copy`."""
    return network in _RECORDED


def recorded_from(network: nn.Module) -> Any:
    """The network that a :func:`recorded_copy` was made of; None of any other."""
    return _RECORDED.get(network)


def can_be_recorded(network: nn.Module) -> bool:
    """Whether there is a :func:`recorded_copy` of such a network."""
    return isinstance(network, (UNet, Dalle2UNet, UNetPair, DiffusionPrior, Dalle2Prior))


def _forgetting_after(apply: Callable[..., nn.Module], recorder: Recorder[Any]) -> Callable[..., nn.Module]:
    def run(*args: Any, **options: Any) -> nn.Module:
        network = apply(*args, **options)
        recorder.forget_if_moved()
        return network

    return run


# --- U-Nets ---


@dataclass(frozen=True)
class _UNetInputs:
    """What a U-Net is called with, see :meth:`UNet.forward`."""

    x: Tensor
    t: Tensor
    condition: UNetCondition | None
    concat: Tensor | None
    noise_level: Tensor | None

    def given_to(self, network: UNet | Dalle2UNet) -> Tensor:
        return network(self.x, self.t, self.condition, concat=self.concat, noise_level=self.noise_level)

    def map(self, function: Callable[[Tensor], Any]) -> _UNetInputs:
        return _UNetInputs(
            function(self.x),
            function(self.t),
            None if self.condition is None else self.condition.map(function),
            None if self.concat is None else function(self.concat),
            None if self.noise_level is None else function(self.noise_level),
        )


def _recorded_forward(recorder: Recorder[_UNetInputs]) -> Callable[..., Tensor]:
    def forward(
        x: Tensor,
        t: Tensor,
        condition: UNetCondition | None = None,
        *,
        concat: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        return recorder(_UNetInputs(x, t, condition, concat, noise_level))

    return forward


# --- priors ---


@dataclass(frozen=True)
class _StepInputs:
    """What a step of a prior reads: x, the index of the step [1], and the cache."""

    x: Tensor
    step: Tensor
    layers: tuple[Tensor, ...]
    valid: Tensor

    def given_to(self, network: DiffusionPrior | Dalle2Prior) -> Tensor:
        return network.step(self.x, self.step, PriorCache(self.layers, self.valid))

    def map(self, function: Callable[[Tensor], Any]) -> _StepInputs:
        layers = tuple(function(layer) for layer in self.layers)
        return _StepInputs(function(self.x), function(self.step), layers, function(self.valid))


def _recorded_step(recorder: Recorder[_StepInputs]) -> Callable[[Tensor, int | Tensor, PriorCache], Tensor]:
    def step(x: Tensor, step: int | Tensor, cache: PriorCache) -> Tensor:
        cache.require_step(step)
        at = step if isinstance(step, Tensor) else torch.tensor([step], device=x.device)
        return recorder(_StepInputs(x, at, cache.layers, cache.valid))

    return step
