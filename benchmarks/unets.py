"""A U-Net of ours and diffusers' with the same random weights, compared over a few sampling steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Run, console, difference, in_turn
from rich.table import Table
from torch import Tensor, nn
from unclip.core.formats.keymap import Rule, load_network
from unclip.core.formats.source import source_of_tensors
from unclip.core.networks.unet import UNet, UNetConfig

CROSS = {"down": "SimpleCrossAttnDownBlock2D", "up": "SimpleCrossAttnUpBlock2D"}
PLAIN = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}


@dataclass(frozen=True)
class Pair:
    """Both systems: one evaluation of the network on the same input, and a whole sampling.

    Each takes nothing and gives network outputs [B, C, H, W], or the last sampler states. ``prepare_ours`` is
    what our first call does besides.
    """

    evaluate_ours: Callable[[], Tensor]
    evaluate_theirs: Callable[[], Tensor]
    sample_ours: Callable[[], Tensor]
    sample_theirs: Callable[[], Tensor]
    prepare_ours: Callable[[], object] | None = None


def diffusers_shape(config: UNetConfig) -> dict[str, object]:
    """The options of diffusers' U-Nets for a config with attention in cross-attention blocks only."""
    attended = [grid in config.attention for grid in config.grids]
    return {
        "sample_size": config.image_size,
        "in_channels": config.in_channels + config.concat_channels,
        "out_channels": config.out_channels,
        "down_block_types": tuple((CROSS if has else PLAIN)["down"] for has in attended),
        "up_block_types": tuple((CROSS if has else PLAIN)["up"] for has in reversed(attended)),
        "block_out_channels": tuple(config.channels * factor for factor in config.channel_mult),
        "layers_per_block": config.res_blocks[0],
    }


def in_ours(theirs: nn.Module, config: UNetConfig, rules: list[Rule]) -> UNet:
    """Our network, loaded from the tensors of theirs as from a file."""
    source = source_of_tensors(Path("random weights"), theirs.state_dict())
    parameter = next(theirs.parameters())
    return load_network(lambda: UNet(config), source, rules, device=parameter.device, dtype=parameter.dtype)


def compare(device: str, pair: Pair, steps: int, repeats: int) -> None:
    """Print the seconds of both and how far apart their networks are; that warms them up as well.

    Samples are not compared: random weights give an x0 that is clamped nearly everywhere, to a sign that
    rounding decides.
    """
    started = time.perf_counter()
    if pair.prepare_ours is not None:
        pair.prepare_ours()
        console.print(f"{device}: our first call takes {time.perf_counter() - started:.2f} s more.")
    apart = difference(pair.evaluate_ours(), pair.evaluate_theirs())
    ours, theirs = in_turn(pair.sample_ours, pair.sample_theirs, repeats)
    table = Table("device", "system", "seconds", "a step", "CPU seconds", "ratio", "difference")
    table.add_row(device, "diffusers", *_times(theirs, steps), "1.00×")
    table.add_row(
        device, "unclip", *_times(ours, steps), f"{theirs.seconds / ours.seconds:.2f}×", f"{apart:.1e}"
    )
    console.print(table)
    console.print(
        "difference: the largest of one evaluation, over its standard deviation. Load after "
        f"{os.getloadavg()[0]:.1f}."
    )


def _times(run: Run, steps: int) -> tuple[str, str, str]:
    return f"{run.seconds:.2f}", f"{run.seconds / steps:.3f}", f"{run.cpu_seconds:.1f}"


def denoised(
    predict: Callable[[Tensor, Tensor], Tensor], scheduler, x: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """The sampling loop of diffusers' UnCLIPPipeline, its state in float32 as ours is."""
    following = [*scheduler.timesteps[1:], None]
    for t, previous in zip(scheduler.timesteps, following, strict=True):
        x = scheduler.step(predict(x, t), t, x, generator=generators, prev_timestep=previous).prev_sample
    return x
