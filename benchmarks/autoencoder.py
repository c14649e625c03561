"""Kandinsky's autoencoder MoVQ against diffusers' VQModel, with the same random weights, latent and type.

python benchmarks/autoencoder.py [--size 512] [--dtype bf16] [--device cpu] [--repeats 3] [--help]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import (
    DTYPES,
    SEED,
    ChannelsLast,
    Dtype,
    Repeats,
    Threads,
    console,
    difference,
    in_turn,
    introduce,
    random_weights,
    timed,
)
from diffusers import VQModel
from rich.table import Table
from torch import Tensor
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.mapping.keymap import load_network
from unclip.core.formats.mapping.movq_rules import diffusers_movq_config, diffusers_movq_rules
from unclip.core.networks.movq import MoVQ
from unclip.core.pipelines.canvas import decoded, encoded
from unclip.tests.helpers.kandinsky import published_movq


def main(
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 512,
    dtype: Dtype = "bf16",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    channels_last: ChannelsLast = False,
    repeats: Repeats = 3,
    threads: Threads = 0,
) -> None:
    """Time both, decoding and encoding, and compare what they give."""
    if threads:
        torch.set_num_threads(threads)
    with torch.device("meta"):
        theirs = published_movq()
    theirs = random_weights(theirs, device, DTYPES[dtype])
    ours = in_ours(theirs)
    if channels_last:
        theirs.to(memory_format=torch.channels_last)
    introduce(f"{size} × {size} pixels", ours, dtype)
    draw = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, 4, size // 8, size // 8, generator=draw).to(device, DTYPES[dtype])
    picture = torch.rand(1, 3, size, size, generator=draw).to(device, DTYPES[dtype]) * 2 - 1
    table = Table("direction", "diffusers", "unclip", "ratio", "difference")
    for name, mine, reference in (
        ("decode", decoded, lambda: theirs.decode(latent, force_not_quantize=True).sample),
        ("encode", encoded, lambda: theirs.encode(picture).latents),
    ):
        table.add_row(name, *compare(mine, ours, latent if name == "decode" else picture, reference, repeats))
    console.print(table)
    console.print(
        f"Seconds. difference: the largest, over the standard deviation. Load after {os.getloadavg()[0]:.1f}."
    )


def in_ours(theirs: VQModel) -> MoVQ:
    """Our network, loaded from the tensors of theirs as from a file."""
    source = source_of_tensors(Path("random weights"), theirs.state_dict())
    config, parameter = diffusers_movq_config(source), next(theirs.parameters())
    rules = diffusers_movq_rules(config)
    return load_network(lambda: MoVQ(config), source, rules, device=parameter.device, dtype=parameter.dtype)


@torch.no_grad()
def compare(
    mine: Callable[[MoVQ, Tensor], Tensor],
    ours: MoVQ,
    given: Tensor,
    reference: Callable[[], Tensor],
    repeats: int,
) -> list[str]:
    first = timed(lambda: mine(ours, given))
    apart = difference(first.samples, timed(reference).samples)
    own, others = in_turn(lambda: mine(ours, given), reference, repeats)
    ratio = f"{others.seconds / own.seconds:.2f}×"
    return [f"{others.seconds:.2f}", f"{own.seconds:.2f}", ratio, f"{apart:.1e}"]


if __name__ == "__main__":
    typer.run(main)
