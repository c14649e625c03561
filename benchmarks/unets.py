"""A U-Net of ours and diffusers' with the same random weights, compared over a few sampling steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import DTYPES, Run, console, difference, in_turn, introduce, random_weights, timed
from rich.table import Table
from torch import Tensor, nn
from unclip.core.acceleration.compiled import compiled_copy
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.mapping.keymap import Rule, load_network
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_config import UNetConfig


@dataclass(frozen=True)
class Pair:
    """Both systems: one evaluation of the network on the same input, and a whole sampling.

    Each takes nothing and gives network outputs [B, C, H, W], or the last sampler states.
    """

    evaluate_ours: Callable[[], Tensor]
    evaluate_theirs: Callable[[], Tensor]
    sample_ours: Callable[[], Tensor]
    sample_theirs: Callable[[], Tensor]


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        build: diffusers' modules, made without memory.
        config, rules: of our network, and what its tensors are called in diffusers' modules.
        pair: both systems of our network and diffusers' modules.
        what: is measured, in words.
        compiled: ours runs through torch.compile.
    """

    build: Callable[[], nn.Module]
    config: UNetConfig
    rules: list[Rule]
    pair: Callable[[UNet, nn.Module], Pair]
    what: str
    steps: int
    dtype: str
    channels_last: bool
    compiled: bool
    repeats: int

    def run(self, devices: Sequence[str], threads: int) -> None:
        """On the CPU and a GPU where there is one, unless devices are named."""
        if threads:
            torch.set_num_threads(threads)
        devices = devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        for index, device in enumerate(devices):
            with torch.device("meta"):
                theirs = self.build()
            theirs = random_weights(theirs, device, DTYPES[self.dtype])
            ours = in_ours(theirs, self.config, self.rules)
            if self.compiled:
                ours = compiled_copy(ours)
            if self.channels_last:
                theirs.to(memory_format=torch.channels_last)
            if not index:
                introduce(f"{self.steps} steps, {self.what}", ours, self.dtype)
            compare(device, self.pair(ours, theirs), self.steps, self.repeats)


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
    first, again = timed(pair.evaluate_ours), timed(pair.evaluate_ours)
    console.print(f"{device}: our first call takes {first.seconds - again.seconds:.2f} s more.")
    apart = difference(again.samples, pair.evaluate_theirs())
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
