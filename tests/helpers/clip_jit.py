"""A module that has the tree of OpenAI's CLIP, to be saved as TorchScript as their files are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class Branch(nn.Module):
    """A node of the tree: what lies below it, by name. It computes nothing of interest."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def tree(state: dict[str, Tensor]) -> nn.Module:
    """Modules with these tensors as parameters, or as buffers where they are whole numbers."""
    root = Branch()
    for key, value in state.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Branch())
            module = module._modules[part]
        if value.is_floating_point():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)
    return root


def save_torchscript(state: dict[str, Tensor], path: Path) -> Path:
    torch.jit.trace(tree(state), torch.zeros(1)).save(str(path))
    return path
