"""Where the layers of a LoRA go: by diffusers' names of the network that it was trained on, or by our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ...networks.diffusion_prior import DiffusionPrior
from ...networks.one_pass_prior import OnePassPrior
from ...networks.unet import UNet
from .kandinsky_rules import diffusers_conditioner_rules
from .keymap import Rule
from .prior_rules import TIME_RULES, transformer_rules
from .unet_rules import diffusers_rules

_NUMBER = "{n}"


@dataclass(frozen=True)
class Part:
    """A layer of diffusers' network: which part it is of a weight of ours.

    Attributes:
        weight: name of ours.
        index, of: its place among the layers that make it.
        transform: from theirs to ours, see :class:`Rule`.
    """

    weight: str
    index: int = 0
    of: int = 1
    transform: Callable[..., Tensor] | None = None


def lora_parts(network: nn.Module) -> dict[str, Part]:
    """By the name of each layer that a LoRA may change: diffusers' names where it has the network, and ours.

    No name is both: where the same one stands in both, it is the same layer.
    """
    own = {name: Part(f"{name}.weight") for name, layer in network.named_modules() if _has_matrix(layer)}
    weights = {part.weight for part in own.values()}
    theirs = {
        name: Part(f"{target}.weight", index, len(rule.sources), rule.transform)
        for rule, target, names in written_out(diffusers_rules_of(network), _layers(network))
        for index, name in enumerate(names)
        if f"{target}.weight" in weights
    }
    return own | theirs


def underlined(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The same by kohya's names, with underlines for dots; without those that two layers would have."""
    found: dict[str, set[Part]] = {}
    for name, part in parts.items():
        found.setdefault(name.replace(".", "_"), set()).add(part)
    return {name: of.pop() for name, of in found.items() if len(of) == 1}


def diffusers_rules_of(network: nn.Module) -> list[Rule]:
    """The rules for diffusers' names of a network that it has too; none for others."""
    if isinstance(network, UNet):
        conditioning = network.config.conditioning
        rules = diffusers_rules(network.config)
        if conditioning is not None and conditioning.null_picture:  # Kandinsky's, and no other's
            rules += diffusers_conditioner_rules(conditioning)
        return rules
    if isinstance(network, DiffusionPrior):
        return [*transformer_rules("image_in"), *TIME_RULES]
    return transformer_rules("noise_in") if isinstance(network, OnePassPrior) else []


def written_out(rules: Iterable[Rule], layers: int) -> Iterator[tuple[Rule, str, tuple[str, ...]]]:
    """Each rule with its target and sources, once a layer where they are numbered."""
    for rule in rules:
        if rule.target is None:
            continue
        for n in range(layers) if _NUMBER in rule.target else (0,):
            number = str(n)
            names = tuple(name.replace(_NUMBER, number) for name in rule.sources)
            yield rule, rule.target.replace(_NUMBER, number), names


def _layers(network: nn.Module) -> int:
    return network.config.layers if isinstance(network, (DiffusionPrior, OnePassPrior)) else 0


def _has_matrix(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return isinstance(layer, (nn.Linear, nn.Conv2d)) and weight is not None
