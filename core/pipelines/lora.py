"""A LoRA on a prior or a decoder: another stage with changed weights; the first stays as it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from numbers import Real
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..acceleration.remade import remade
from ..acceleration.twins import twin_of
from ..networks.lora import Lora, WeightChange
from ..stages import DecoderStage, PriorStage

Stage = TypeVar("Stage", PriorStage, DecoderStage)
Applied = tuple[tuple[Lora, float], ...]

# Each changed network with what it was made of, so that a second LoRA starts from the same weights.
_APPLIED: WeakKeyDictionary[nn.Module, tuple[nn.Module, Applied]] = WeakKeyDictionary()


def with_lora(stage: Stage, lora: Lora, strength: float = 1.0) -> Stage:
    """A stage whose network has W + strength · ΔW, in the type of its weights; several add up.

    Weights that are not changed are shared with the given stage, whose own stay untouched. The sum of all
    LoRAs is taken in float32 before it is rounded once. A network that is compiled or recorded is so again.

    Args:
        lora: made for this network, see ``core.formats.lora.LoraFile``.
        strength: any finite number; at 0 the given stage itself comes back.

    Raises:
        ValueError: a strength that is not finite.
    """
    if not isinstance(strength, Real) or not math.isfinite(strength):
        raise ValueError(f"strength: found {strength!r}, expected a finite number such as 1")
    if strength == 0:
        return stage
    return replace(stage, network=remade(stage.network, lambda network: _changed(network, lora, strength)))


def with_loras(
    stages: Sequence[Stage | None], loras: Sequence[Lora | None], strength: float
) -> tuple[Any, ...]:
    """Each of some stages with its own LoRA, see :func:`with_lora`; as it is where either is None."""
    return tuple(
        stage if stage is None or lora is None else with_lora(stage, lora, strength)
        for stage, lora in zip(stages, loras, strict=True)
    )


def _changed(network: Any, lora: Lora, strength: float) -> Any:
    base, applied = _APPLIED.get(network, (network, ()))
    applied = (*applied, (lora, strength))
    changes: dict[str, list[tuple[WeightChange, float]]] = defaultdict(list)
    for each, factor in applied:
        for name, change in each.changes.items():
            changes[name].append((change, factor))
    twin = _with_weights(
        base, {name: _sum(base.get_parameter(name), found) for name, found in changes.items()}
    )
    _APPLIED[twin] = base, applied
    return twin


def _sum(weight: Tensor, changes: list[tuple[WeightChange, float]]) -> Tensor:
    total = torch.zeros(weight.shape, device=weight.device)
    for change, strength in changes:
        total += strength * change.total(weight.device)
    layout = torch.channels_last if weight.ndim == 4 else torch.preserve_format
    return (weight.detach().float() + total).to(weight.dtype).contiguous(memory_format=layout)


def _with_weights(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A twin with other parameters of these names, below it or its own."""
    below: dict[str, dict[str, Tensor]] = defaultdict(dict)
    own: dict[str, nn.Parameter | None] = {}
    for name, weight in weights.items():
        child, dot, rest = name.partition(".")
        if dot:
            below[child][rest] = weight
        else:
            own[name] = nn.Parameter(weight, requires_grad=False)
    twin = twin_of(
        network, {name: _with_weights(network.get_submodule(name), found) for name, found in below.items()}
    )
    if own:
        twin._parameters = copy(network._parameters) | own
    return twin
