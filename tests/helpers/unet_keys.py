"""Weights of diffusers' U-Nets and text projection as state dicts of ours, by the rules of the loaders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts.diffusers import text_projection_rules
from unclip.core.formats.mapping.keymap import Rule, match
from unclip.core.formats.mapping.unet_rules import diffusers_rules
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_config import UNetConfig

State = dict[str, Tensor]


def unet_state_from_diffusers(theirs: State, config: UNetConfig) -> State:
    """State dict of a ``UNet2DConditionModel`` or ``UNet2DModel`` → ours, without the conditioner."""
    with torch.device("meta"):
        names = UNet(config).state_dict()
    return _renamed(
        theirs, diffusers_rules(config), [name for name in names if not name.startswith("conditioner.")]
    )


def conditioner_state_from_diffusers(theirs: State, tokens: int = 4) -> State:
    """State dict of ``UnCLIPTextProjModel`` → that of a ``Conditioner`` with ``tokens`` CLIP tokens."""
    ours = ("clip_embedding", "text_embedding", "text_context", "text_norm", "clip_context")
    expected = ["null_clip", *(f"{name}.{kind}" for name in ours for kind in ("weight", "bias"))]
    return _renamed(theirs, text_projection_rules(tokens), expected)


def _renamed(theirs: State, rules: list[Rule], expected: Iterable[str]) -> State:
    places = match(source_of_tensors(Path("diffusers"), theirs), rules, list(expected))
    return {name: place.make(theirs) for name, place in places.items()}
