"""Write a LoRA file: in diffusers' names where it has the network, so that it loads there too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .files.safetensors_io import write_tensor_file
from .lora import METADATA, NETWORK
from .mapping.keymap import concatenated
from .mapping.lora_rules import Part, lora_parts


def write_lora(
    path: str | Path,
    network: nn.Module,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the factors of a network's layers, whole or not at all.

    A layer that joins several of diffusers' (queries, keys and values) becomes as many with the same ``down``
    and parts of ``up``: exactly the same change. alpha is multiplied into ``up``, so that programs that do
    not read it (diffusers, given the path of a file) take the right one. peft's settings stand in the file's
    metadata, where diffusers and :func:`read_lora` look for them.

    Args:
        path: ends in ``.safetensors``.
        factors: by the layer's name in the network: down [r, I, …] and up [O, r, …], all of one rank.
        alpha: the change is alpha / r · up · down.
        dtype: of the tensors.

    Returns:
        The file.
    """
    theirs: dict[str, list[tuple[str, Part]]] = {}
    for name, part in lora_parts(network).items():
        own = f"{name}.weight" == part.weight
        if not own and part.transform in (None, concatenated):
            theirs.setdefault(part.weight, []).append((name, part))
    (rank,) = {len(down) for down, _ in factors.values()}
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in factors.items():
        parts = sorted(theirs.get(f"{layer}.weight", []), key=lambda each: each[1].index)
        if not parts:
            parts = [(layer, Part(f"{layer}.weight"))]
        scaled = up.detach() * (alpha / rank)
        for (name, _), rows in zip(parts, scaled.chunk(len(parts)), strict=True):
            tensors[f"{name}.lora_A.weight"] = down.detach().to("cpu", dtype, copy=True).contiguous()
            tensors[f"{name}.lora_B.weight"] = rows.to("cpu", dtype, copy=True).contiguous()
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    settings = {"r": rank, "lora_alpha": rank, "target_modules": names}
    about = {"format": "pt", METADATA: json.dumps(settings), NETWORK: type(network).__name__}
    return write_tensor_file(path, tensors, about, None)
