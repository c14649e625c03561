"""What training starts from that is there already: any model that loads, with its shape and its schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ..stages import DecoderStage, PriorStage
from .low_rank import LowRankConfig, LowRankNetwork
from .settings import LoopConfig

Stage = TypeVar("Stage", PriorStage, DecoderStage)


def load_base(path: str, kind: type[Stage]) -> Stage:
    """The stage of ``base``, in float32.

    Args:
        path: a file, the folder of a network, or a whole model in diffusers' layout.

    Raises:
        ValueError: nothing there, or another stage.
    """
    from ..formats.load import load_any_stage

    if not Path(path).exists():
        raise ValueError(f"base: there is no file or folder {path}")
    name = "prior" if kind is PriorStage else "decoder"
    stage = load_any_stage(path, expect=name, dtype=torch.float32)
    assert isinstance(stage, kind)  # as expected above
    return stage


def trained(
    network: nn.Module, stage_network: nn.Module, lora: LowRankConfig | None, loop: LoopConfig
) -> nn.Module:
    """What is trained of a network: all of it, or a LoRA's factors.

    Raises:
        ValueError: settings of the loop that a LoRA does not go with.
    """
    if loop.start_from is not None:
        raise ValueError(
            "loop.start_from goes with [model]; with base, which brings its weights, leave it out"
        )
    if lora is None:
        network.requires_grad_(True)
        return network
    if loop.parallel == "fsdp":
        raise ValueError('loop.parallel is "fsdp", but a LoRA is small: take "ddp"')
    return LowRankNetwork(network, stage_network, lora)
