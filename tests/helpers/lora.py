"""LoRA files as their trainers write them, with random factors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from unclip.core.networks.lora import Lora

from .unet import random_tensor

RANK = 3
Layers = dict[str, tuple[Tensor, Tensor]]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")


def random_layers(network: nn.Module, endings: tuple[str, ...] = ATTENTION, rank: int = RANK) -> Layers:
    """Down and up of every Linear whose name has one of these endings."""
    found: Layers = {}
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and name.endswith(endings):
            outputs, inputs, *kernel = layer.weight.shape
            seed = 2 * len(found)
            down = random_tensor(seed, rank, inputs, *kernel) / inputs**0.5
            found[name] = down, random_tensor(seed + 1, outputs, rank, *(1 for _ in kernel)) / rank
    assert found
    return found


def write_old(layers: Layers, path: Path) -> Path:
    """As diffusers' Kandinsky 2.2 scripts did: inside the attention processors."""
    tensors = {}
    for name, (down, up) in layers.items():
        at, _, layer = name.removesuffix(".0").rpartition(".")
        tensors[f"{at}.processor.{layer}_lora.down.weight"] = down
        tensors[f"{at}.processor.{layer}_lora.up.weight"] = up
    save_file(tensors, path)
    return path


def write_peft(layers: Layers, path: Path, prefix: str = "", alpha: float | None = None) -> Path:
    """As peft names them, with diffusers' settings where there is an alpha."""
    tensors = {}
    for name, (down, up) in layers.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = down
        tensors[f"{prefix}{name}.lora_B.weight"] = up
    about = None if alpha is None else {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": alpha})}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, about)
    return path


@torch.no_grad()
def merged(network: nn.Module, layers: Layers, strength: float = 1.0) -> nn.Module:
    """The network itself, W + strength · up · down in the layers of these names."""
    for name, (down, up) in layers.items():
        weight = network.get_submodule(name).weight
        weight += strength * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return network


def bits(network: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def names_of(lora: Lora) -> set[str]:
    return set(lora.changes)
