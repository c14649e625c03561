"""LoRA files: of diffusers (``save_lora_adapter``, and its Kandinsky 2.2 scripts), of peft, in kohya's names
(``lora_unet_`` and the layer's with underlines), and our own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..networks.dalle2_unet import Dalle2UNet
from ..networks.lora import Factors, Lora, WeightChange
from ..networks.unet import UNet
from .files.json_files import read_json_object
from .files.source import open_weights
from .files.weight_source import WeightSource
from .mapping.lora_rules import Part, lora_parts, underlined
from .mapping.number_types import computable, is_finite, require_number_type

METADATA = "lora_adapter_metadata"  # what diffusers calls peft's settings in a file
NETWORK = "unclip_network"  # the class of the network that one of our own was trained on
_SETTINGS_FILE = "adapter_config.json"  # of peft, beside its adapter_model.safetensors
_DECODER, _PRIOR, _ANY = "unet", "prior", ""

# Behind the name of a layer. peft puts the adapter's name before ".weight" where it saves a whole model.
_FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<letter>[AB])(?:\.\w+)?|[._]lora(?:_layer|_linear_layer)?\.(?P<word>down|up)"
    r"|\.lora_(?P<kohya>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:_lora)?\.alpha")
_IS_DOWN = {"A": True, "down": True, "B": False, "up": False}
_REGULAR = re.compile(r"[*+?()\[\]{}|^$\\]")
_WRAPPERS = ("base_model.model.", "module.")

# What the names of all layers tell, the first that is found in any of them.
_OTHERS = (
    (re.compile(r"lora_te\d?_|text_encoder|text_model"), "a text encoder, such as Stable Diffusion's"),
    (re.compile(r"attn2|(in|out)put_blocks|attentions[._]\d+[._]transformer_blocks"), "Stable Diffusion"),
    (re.compile(r"double_blocks|single_(transformer_)?blocks|joint_blocks"), "Flux or the like"),
    (re.compile(r"(down|mid|up)_blocks?[._]"), "a decoder of Karlo or Kandinsky"),
    (re.compile(r"transformer_blocks[._]\d+[._](attn1|ff)[._]"), "a prior of Karlo or Kandinsky"),
)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Factors of a layer, and what its tensors are called in the file."""

    factors: Factors
    keys: tuple[str, str]


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA as it lies in a file, for whatever network.

    Attributes:
        made_for: class of the network that it was trained on; "" where the file does not tell.
        layers: by the network that the names begin with (``"unet"``, ``"prior"``, or ``""`` for none), then
            by the layer's name.
    """

    path: Path
    made_for: str
    layers: Mapping[str, Mapping[str, _Layer]]

    def for_networks(self, *networks: nn.Module | None) -> tuple[Lora | None, ...]:
        """What the LoRA changes in each of some networks; None where that is another one's, or is None.

        Raises:
            ValueError: it was made for none of them; names a tensor, its shape and what was expected.
        """
        found: list[Lora | None] = []
        errors: list[ValueError] = []
        for network in networks:
            try:
                found.append(None if network is None else self._fitting(network))
            except ValueError as error:
                found.append(None)
                errors.append(error)
        if not any(found):
            raise errors[0] if errors else self._of_another(*(each for each in networks if each is not None))
        return tuple(found)

    def _of_another(self, *networks: nn.Module) -> ValueError:
        every = [layer for layers in self.layers.values() for layer in layers.values()]
        told = (
            (name, layer) for pattern, name in _OTHERS for layer in every if pattern.search(layer.keys[0])
        )
        other, layer = next(told, ("another network", every[0]))
        kinds = " or ".join(f"the {_in_words(network)}" for network in networks)
        return ValueError(
            f"{self.path}: is a LoRA for {other}: its {layer.keys[0]} {_shape(layer.factors.down)} names no "
            f"layer of {kinds or 'a model'} that is connected. Choose a LoRA that was trained on this model, "
            f"or connect the model that it was trained on"
        )

    def _fitting(self, network: nn.Module) -> Lora | None:
        if self.made_for not in ("", type(network).__name__):
            return None
        parts = lora_parts(network)
        parts |= underlined(parts)
        layers = self.layers.get(_kind(network), {}) or self.layers.get(_ANY, {})
        if not any(name in parts for name in layers):
            return None
        weights = dict(network.named_parameters())
        changes: dict[str, dict[int, Factors]] = {}
        of: dict[str, Part] = {}
        for name, layer in layers.items():
            part = parts.get(name)
            if part is None:
                raise ValueError(
                    f"{self.path}: is a LoRA for another network: this {_in_words(network)} has no layer for "
                    f"its {layer.keys[0]} {_shape(layer.factors.down)}. Choose one that was trained on it"
                )
            self._require_shape(layer, part, tuple(weights[part.weight].shape), network)
            changes.setdefault(part.weight, {})[part.index] = layer.factors
            of[part.weight] = part
        made = {
            weight: WeightChange(
                tuple(found.get(index) for index in range(of[weight].of)), of[weight].transform
            )
            for weight, found in changes.items()
        }
        return Lora(made, str(self.path))

    def _require_shape(self, layer: _Layer, part: Part, weight: tuple[int, ...], network: nn.Module) -> None:
        expected = (weight[0] // part.of, *weight[1:])
        if layer.factors.shape != expected:
            down, up = (f"{key} {_shape(factor)}" for key, factor in _named(layer))
            raise ValueError(
                f"{self.path}: is a LoRA for another network: {down} and {up} change weights "
                f"{list(layer.factors.shape)}, but this {_in_words(network)} has {list(expected)} there. "
                f"Choose one that was trained on this model"
            )


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA file, of any network.

    A factor alpha / r comes from the ``alpha`` tensors, from peft's settings in the file or in
    ``adapter_config.json`` beside it; without any it is 1, as diffusers takes it.

    Raises:
        ValueError: no such file, or something else than a plain LoRA in it; names file and key.
    """
    source = open_weights(path)
    factors: dict[str, dict[bool, str]] = {}
    alphas: dict[str, str] = {}
    for key in source.shapes:
        if found := _FACTOR.fullmatch(key):
            down = _IS_DOWN[found["letter"] or found["word"] or found["kohya"]]
            factors.setdefault(found["layer"], {})[down] = key
        elif found := _ALPHA.fullmatch(key):
            alphas[found["layer"]] = key
        else:
            raise _no_plain_lora(source, key)
    if not factors:
        raise ValueError(f"{source.path}: is empty; expected a LoRA with its factors. Get the file again")
    settings = _settings(source)
    scalars = set(alphas.values())
    tensors = {key: _checked(source, key, tensor, key in scalars) for key, tensor in source.tensors()}
    layers: dict[str, dict[str, _Layer]] = {}
    for written, pair in factors.items():
        if len(pair) < 2:
            lacking, there = ("up", pair[True]) if True in pair else ("down", pair[False])
            raise ValueError(
                f"{source.path}: lacks the factor {lacking} that belongs to {there}. The file is incomplete: "
                f"get it again"
            )
        down, up = tensors[pair[True]], tensors[pair[False]]
        _require_pair(source, pair, down, up)
        kind, name = _plain_name(written)
        rank = down.shape[0]
        if written in alphas:
            scale = float(tensors[alphas[written]]) / rank
        else:
            try:
                scale = _scale(settings, kind, name, rank)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{source.path}: settings of the LoRA cannot be read: {error}") from error
        layers.setdefault(kind, {})[name] = _Layer(Factors(down, up, scale), (pair[True], pair[False]))
    return LoraFile(source.path, str(source.metadata.get(NETWORK, "")), layers)


def _no_plain_lora(source: WeightSource, key: str) -> ValueError:
    low_rank = any(word in name for name in source.shapes for word in ("lora", "lokr", "hada", "oft_"))
    what = (
        "is a variant of LoRA (DoRA, LoHa, LoKr or with biases) that is not read"
        if low_rank
        else "is no LoRA"
    )
    return ValueError(
        f"{source.path}: {what}: found {key} {list(source.shapes[key])}, expected names that end in "
        f"lora_A.weight and lora_B.weight, or lora.down.weight and lora.up.weight. Choose a plain LoRA"
    )


def _checked(source: WeightSource, key: str, tensor: Tensor, scalar: bool) -> Tensor:
    if scalar and tensor.numel() != 1:
        raise ValueError(
            f"{source.path}: {key} {_shape(tensor)} is no single number. The file is damaged: get it again"
        )
    if scalar and not tensor.is_floating_point():
        return tensor.float()  # diffusers writes an alpha as a whole number
    require_number_type(source.path, key, tensor.dtype)
    if not is_finite(computable(tensor)):
        raise ValueError(
            f"{source.path}: {key} holds NaN or infinite values. Get the file again or an earlier one"
        )
    return computable(tensor)


def _require_pair(source: WeightSource, pair: Mapping[bool, str], down: Tensor, up: Tensor) -> None:
    fits = down.ndim == up.ndim and down.ndim in (2, 4) and up.shape[1] == down.shape[0] > 0
    if not fits or any(side != 1 for side in up.shape[2:]):
        raise ValueError(
            f"{source.path}: {pair[True]} {_shape(down)} and {pair[False]} {_shape(up)} do not multiply; "
            f"expected [rank, inputs] and [outputs, rank]. The file is damaged: get it again"
        )


def _plain_name(written: str) -> tuple[str, str]:
    """The network that a name begins with, and the layer's name in it, without the old processors. In kohya's
    names underlines stand for the dots."""
    for wrapper in _WRAPPERS:
        written = written.removeprefix(wrapper)
    for kind in (_DECODER, _PRIOR):
        for start in (f"lora_{kind}_", f"{kind}_"):  # the second is diffusers' for what is no U-Net
            if written.startswith(start):
                return kind, written.removeprefix(start)
    kind, dot, rest = written.partition(".")
    if not dot or kind not in (_DECODER, _PRIOR):
        kind, rest = _ANY, written
    old = rest.replace(".processor.", ".")
    if old != rest and old.endswith(".to_out"):
        old += ".0"
    return kind, old


# --- alpha ---


def settings_beside(path: Path) -> list[Path]:
    """The file of peft's settings beside a LoRA, which counts for one of the name that peft gives alone."""
    beside = path.parent / _SETTINGS_FILE
    return [beside] if path.name.startswith("adapter_model") and beside.is_file() else []


def _settings(source: WeightSource) -> dict[str, Any]:
    """peft's settings of the adapter; empty where they are in no file."""
    found = source.metadata.get(METADATA)
    if found is None:
        beside = settings_beside(source.path)
        return read_json_object(beside[0]) if beside else {}
    try:
        settings = json.loads(found)
    except ValueError as error:
        raise ValueError(
            f"{source.path}: its {METADATA} is not JSON ({error}); get the file again"
        ) from error
    return settings if isinstance(settings, dict) else {}


def _scale(settings: Mapping[str, Any], kind: str, name: str, rank: int) -> float:
    """alpha / r, by peft's settings; pipelines of diffusers put the network's name before each."""

    def setting(key: str, default: Any) -> Any:
        return settings.get(f"{kind}.{key}", settings.get(key, default))

    alpha = setting("lora_alpha", rank)
    for pattern, value in (setting("alpha_pattern", None) or {}).items():
        layer = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if _REGULAR.search(layer):  # never run: a file may come from a stranger
            raise ValueError(
                f"its alpha_pattern has the regular expression {pattern!r}, expected names of layers. Save "
                f"the LoRA with one alpha for all layers"
            )
        if f".{name}".endswith(f".{layer}"):
            alpha = value
            break
    return float(alpha) / (sqrt(rank) if setting("use_rslora", False) else rank)


# --- words ---


def _kind(network: nn.Module) -> str:
    return _DECODER if isinstance(network, (UNet, Dalle2UNet)) else _PRIOR


def _in_words(network: nn.Module) -> str:
    return "decoder" if isinstance(network, (UNet, Dalle2UNet)) else "prior"


def _named(layer: _Layer) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    return (layer.keys[0], layer.factors.down), (layer.keys[1], layer.factors.up)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
