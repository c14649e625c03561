"""Checkpoint files of real size with random weights, written tensor by tensor: the memory stays free.

Weights are of the scale at which networks are initialised, so that activations stay about one. All are cut
from one block of normal noise. Or the numbers are left out: files with holes, which are read as zeros, take
no room on the disk and no time to write, and make networks work as hard.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
_SPREAD = "clip_std"  # of embeddings: no file is taken in which it is zero
_PART = 2**20 + 7  # of the noise; no multiple of a width, so that rows differ

# Tables of vectors that are added to others, which are not scaled by any number of inputs.
_TABLE = re.compile(r"(positional|position|padding|token)_embedding(\.weight)?$")


@dataclass(frozen=True)
class Weights:
    """The tensors of a file: shapes by name, their type, and the types of those that differ."""

    shapes: Shapes
    dtype: torch.dtype
    others: Mapping[str, torch.dtype] = field(default_factory=dict)

    def tensors(self, zeros: bool = False) -> Iterator[tuple[str, Tensor]]:
        """One after the other, each as long as it is asked for."""
        noise = _noise()
        for name, shape in self.shapes.items():
            tensor = torch.zeros(shape, dtype=self.dtype_of(name))
            yield name, tensor if zeros else fill(tensor, name, noise)

    def dtype_of(self, name: str) -> torch.dtype:
        return self.others.get(name, self.dtype)


def _noise() -> Tensor:
    return torch.randn(_PART, generator=torch.Generator().manual_seed(0))


def fill(tensor: Tensor, name: str, noise: Tensor) -> Tensor:
    """Fill a tensor in place as the name of its layer tells; returns it."""
    if not tensor.is_floating_point():
        return tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    mean, std = _mean_and_std(name, tuple(tensor.shape))
    for part in tensor.view(-1).split(len(noise)):
        part.copy_(noise[: len(part)] * std + mean)
    return tensor


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if name.endswith("logit_scale"):
        return 4.6, 0.0
    is_norm = len(shape) == 1 and name.endswith((".weight", ".g"))
    if is_norm or name == _SPREAD:
        return 1.0, 0.02
    if len(shape) < 2 or _TABLE.search(name):
        return 0.0, 0.02
    return 0.0, prod(shape[1:]) ** -0.5


def write_safetensors(path: Path, content: Weights, zeros: bool = False) -> None:
    """Write a safetensors file (its README, "Format")."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in content.shapes.items():
        start, dtype = end, content.dtype_of(name)
        end = start + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if zeros:
            start = file.tell()
            file.truncate(start + end)
            for name in content.shapes.keys() & {_SPREAD}:
                file.seek(start + header[name]["data_offsets"][0])
                file.write(torch.ones(content.shapes[name], dtype=content.dtype_of(name)).numpy().data)
            return
        for _, tensor in content.tensors():
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def write_torch(
    path: Path, content: Weights, wrap: str | None = None, zeros: bool = False, **beside: Any
) -> None:
    """Write a PyTorch file: first without its numbers, which are then put in through a mapping of it.

    Args:
        wrap: key under which the weights lie; None: they are the file.
        beside: what else lies there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Memory that is never touched is never taken.
    state = {name: torch.empty(shape, dtype=content.dtype_of(name)) for name, shape in content.shapes.items()}
    with torch.serialization.skip_data():
        torch.save(state if wrap is None else {wrap: state, **beside}, path)
    if zeros:
        return
    noise = _noise()
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=False)  # it was written above
        for name, tensor in (mapped if wrap is None else mapped[wrap]).items():
            fill(tensor, name, noise)
