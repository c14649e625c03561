"""Our decoder against diffusers', Karlo's or Kandinsky 2.2's, with the same random weights, noise and type.

Ours is `decode`; theirs the decoder's part of diffusers' pipelines, see `karlo_decoder.py` and
`kandinsky_decoder.py`.

    python benchmarks/decoder.py [--model karlo] [--steps 3] [--dtype bf16] [--device cpu] [--help]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import kandinsky_decoder
import karlo_decoder
import torch
import typer
from common import (
    Batch,
    CaptionTokens,
    ChannelsLast,
    Compile,
    Devices,
    Dtype,
    Repeats,
    Threads,
)
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.pipelines.decode import DecodeOptions
from unets import Comparison

GUIDANCE = {"karlo": 8.0, "kandinsky22": 4.0}


def main(
    model: Annotated[str, typer.Option(help=f"{' or '.join(GUIDANCE)}.")] = "karlo",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 3,
    batch: Batch = 1,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 0 for that of its authors.")] = 0.0,
    dtype: Dtype = "bf16",
    caption_tokens: CaptionTokens = 12,
    size: Annotated[int, typer.Option(help="Pixels of a side, for Kandinsky.")] = 512,
    levels: Annotated[
        int, typer.Option(help="Of Kandinsky's four, the finest first: fewer need less memory.")
    ] = 4,
    device: Devices = (),
    channels_last: ChannelsLast = False,
    compile: Compile = False,
    repeats: Repeats = 1,
    threads: Threads = 0,
) -> None:
    """Time both systems and compare what they give."""
    if model not in GUIDANCE:
        raise typer.BadParameter(f"found {model}, expected {' or '.join(GUIDANCE)}")
    options = DecodeOptions(steps=steps, guidance_scale=guidance or GUIDANCE[model], sampler="ddpm")
    what = f"batch {batch}, guidance {options.guidance_scale:g}"
    if model == "karlo":
        compared = (
            karlo_decoder.random_decoder,
            karlo_decoder.KARLO,
            karlo_decoder.RULES,
            lambda ours, theirs: karlo_decoder.pair(ours, theirs, caption_tokens, batch, options),
            f"{what}, a caption of {caption_tokens} tokens",
        )
    else:
        with torch.device("meta"):
            state = kandinsky_decoder.random_decoder(levels).state_dict()
        compared = (
            lambda: kandinsky_decoder.random_decoder(levels),
            *kandinsky_decoder.shape_of(source_of_tensors(Path("shapes"), state)),
            lambda ours, theirs: kandinsky_decoder.pair(ours, theirs, size // 8, batch, options),
            f"{what}, {size} × {size} pixels, {levels} of 4 levels",
        )
    comparison = Comparison(*compared, steps, dtype, channels_last, compile, repeats)
    comparison.run(device, threads)


if __name__ == "__main__":
    typer.run(main)
