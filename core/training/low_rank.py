"""Training a LoRA instead of a whole network (2106.09685), by peft."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config import POSITIVE, Range, require_ranges
from ..networks.without_memory import without_memory

# Layers by what they are, as the ends of their names in the networks of this family.
GROUPS = {
    "attention": (
        *("attention.qkv", "attention.context_kv", "attention.out"),  # of U-Nets
        *("qkv", "attention_out", "q", "kv"),  # of priors
    ),
    "mlp": ("mlp_in", "mlp_out"),
    "convolutions": ("residual.conv_in", "residual.conv_out", "skip"),
}
_ADAPTER = "default"
LARGEST_RANK = 1024


@dataclass(frozen=True)
class LowRankConfig:
    """The table ``[lora]`` of a config.

    Attributes:
        rank: r of the two factors.
        alpha: the change is alpha / rank · up · down; None is the rank.
        targets: which layers: ``"attention"``, ``"mlp"``, ``"convolutions"``, or ends of their names.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ("attention",)

    def __post_init__(self) -> None:
        require_ranges(self, "lora", rank=Range(1, LARGEST_RANK), alpha=POSITIVE)
        if not self.targets:
            raise ValueError(
                f"lora.targets is empty, expected one of {', '.join(GROUPS)}, or names of layers"
            )

    @property
    def scale_alpha(self) -> float:
        """alpha, as it is written."""
        return float(self.rank if self.alpha is None else self.alpha)


class LowRankNetwork(nn.Module):
    """A frozen network with factors beside some of its layers; its parameters and state are those alone.

    So checkpoints, averages and the optimizer hold what is trained, and no second copy of the rest.

    Args:
        network: what is called, which holds the stage's own; factors are put into it.
        stage_network: whose layers they are.
    """

    def __init__(self, network: nn.Module, stage_network: nn.Module, config: LowRankConfig) -> None:
        super().__init__()
        if importlib.util.find_spec("peft") is None:
            raise ValueError('[lora] needs peft, which is not installed: pip install -e ".[train]"')
        from peft import LoraConfig, inject_adapter_in_model

        network.requires_grad_(False)
        names = target_layers(stage_network, config.targets)
        settings = LoraConfig(r=config.rank, lora_alpha=config.scale_alpha, target_modules=names)
        inject_adapter_in_model(settings, stage_network, _ADAPTER)
        self.network = network
        self._stage = [stage_network]  # not registered: it is in the network
        self._alpha = config.scale_alpha

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.network(*arguments, **named)

    def factors(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Down and up by the name of the layer in the stage's network."""
        from peft.tuners.lora import LoraLayer

        return {
            name: (layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight)
            for name, layer in self._stage[0].named_modules()
            if isinstance(layer, LoraLayer)
        }

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        if recurse:
            start = f"{prefix}." if prefix else ""
            for name, (down, up) in self.factors().items():
                yield f"{start}{name}.lora_A", down
                yield f"{start}{name}.lora_B", up

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: value.detach() for name, value in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor], *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Take the factors over. Raises RuntimeError, as torch does, where they are others."""
        own = dict(self.named_parameters())
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise RuntimeError("the state is that of another LoRA")
        for name, value in own.items():
            value.data.copy_(state[name])

    def write(self, path: Path) -> Path:
        """The LoRA as a file."""
        from ..formats.lora_writing import write_lora

        network: Any = self._stage[0]
        with without_memory():
            plain = type(network)(network.config)  # whose layers have their own types
        return write_lora(path, plain, self.factors(), self._alpha)


def target_layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of the layers of a network that are meant: Linears and convolutions.

    Raises:
        ValueError: one of the targets is none of them; names those that there are.
    """
    layers = [name for name, layer in network.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)]
    found: list[str] = []
    for target in targets:
        ends = GROUPS.get(target, (target,))
        meant = [name for name in layers if f".{name}".endswith(tuple(f".{end}" for end in ends))]
        if not meant:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(
                f"lora.targets names {target!r}, but no layer of this network is called so; expected one of "
                f"{', '.join(GROUPS)}, or the end of a name: {', '.join(known)}"
            )
        found += [name for name in meant if name not in found]
    return found
