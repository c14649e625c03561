"""The whole of Karlo, from a caption to 256 pixels, against diffusers' UnCLIPPipeline on the same weights.

Random weights of the published shapes are written in diffusers' layout, unless a folder with such a model is
given; both systems run from that folder, with the steps and guidance scales that the pipeline has by default.
Ours is measured as it is, compiled and, on a GPU, recorded, as the node unCLIP Compile does.

    python benchmarks/pipeline.py [--device cuda] [--dtype fp16] [--batch 1] [--folder DIR] [--help]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import DTYPES, Batch, Repeats, Threads, console
from diffusers import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler
from rich.table import Table
from torch import nn
from transformers import CLIPTextModelWithProjection
from unclip.core.acceleration.compiled import compiled_copy
from unclip.core.acceleration.recorded import recorded_copy
from unclip.core.formats.load import load_any_bundle
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import Bundle
from unclip.tests.helpers import karlo, published
from unclip.tests.helpers.unet import KARLO_DECODER, KARLO_UPSAMPLER

CAPTION = "a red fox in the snow, in the style of a woodcut"
SEED = 0
STAGES = ("text", "prior", "decoder", "upsampler")

Seconds = dict[str, float]
"""Of each stage."""


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu; the GPU where there is one.")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    batch: Batch = 1,
    folder: Annotated[
        Path | None, typer.Option(help="A Karlo in diffusers' layout; random weights are made without.")
    ] = None,
    compile: Annotated[bool, typer.Option(help="Measure ours compiled as well; takes minutes.")] = True,
    repeats: Repeats = 3,
    threads: Threads = 0,
) -> None:
    """Time both systems, stage by stage."""
    if threads:
        torch.set_num_threads(threads)
    console.print(f"{device}, {dtype}, batch {batch}; torch {torch.__version__}")
    if folder is not None:
        theirs = UnCLIPPipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype]).to(device)
        measure(theirs, folder, device, dtype, batch, compile, repeats)
        return
    theirs = random_pipeline(torch.device(device), DTYPES[dtype])
    with tempfile.TemporaryDirectory() as temporary:
        karlo.save_as_published(theirs, Path(temporary))
        measure(theirs, Path(temporary), device, dtype, batch, compile, repeats)


def measure(
    theirs: UnCLIPPipeline, folder: Path, device: str, dtype: str, batch: int, compile: bool, repeats: int
) -> None:
    """Print a row for each system; the first run of each warms it up and is not counted."""
    table = Table("system", *STAGES, "whole", "ratio", "first run", title="seconds")
    reference = None
    for name, run in systems(theirs, folder, device, dtype, batch, compile).items():
        first = sum(run().values())
        runs = sorted((run() for _ in range(repeats)), key=lambda seconds: sum(seconds.values()))
        median = runs[repeats // 2]
        whole = sum(median.values())
        reference = whole if reference is None else reference
        cells = [f"{median[stage]:.3f}" for stage in STAGES]
        table.add_row(name, *cells, f"{whole:.3f}", f"{reference / whole:.2f}×", f"{first:.1f}")
        console.print(f"{name}: {whole:.3f} s ({', '.join(cells)}), first run {first:.1f} s", highlight=False)
    console.print(table)


def systems(
    theirs: UnCLIPPipeline, folder: Path, device: str, dtype: str, batch: int, compile: bool
) -> dict[str, Callable[[], Seconds]]:
    """diffusers' first, then ours in all its ways, by name."""
    theirs.set_progress_bar_config(disable=True)
    bundle = load_any_bundle(folder, device=device, dtype=DTYPES[dtype])
    found: dict[str, Callable[[], Seconds]] = {
        "diffusers": lambda: run_theirs(theirs, batch),
        "unclip": lambda: run_ours(bundle, batch),
    }
    if device != "cpu":
        recorded = with_recordings(bundle)
        found["unclip, recorded"] = lambda: run_ours(recorded, batch)
    if compile:
        compiled = with_unets(bundle, compiled_copy)
        found["unclip, compiled"] = lambda: run_ours(compiled, batch)
        if device != "cpu":
            both = with_recordings(compiled)
            found["unclip, compiled and recorded"] = lambda: run_ours(both, batch)
    return found


def with_recordings(bundle: Bundle) -> Bundle:
    prior = replace(bundle.prior, network=recorded_copy(bundle.prior.network))
    return replace(with_unets(bundle, recorded_copy), prior=prior)


def with_unets(bundle: Bundle, change: Callable[[nn.Module], nn.Module]) -> Bundle:
    """A bundle with another decoder and other upsamplers."""
    decoder, *upsamplers = (
        replace(stage, network=change(stage.network)) for stage in (bundle.decoder, *bundle.upsamplers)
    )
    return replace(bundle, decoder=decoder, upsamplers=tuple(upsamplers))


# --- ours ---


def run_ours(bundle: Bundle, batch: int) -> Seconds:
    """As the nodes run it, with diffusers' numbers of steps."""
    clock = Clock(next(bundle.decoder.network.parameters()).device)
    text = encode_text(bundle.clip, [CAPTION])
    clock.stage("text")
    options = PriorOptions(steps=25, guidance_scale=4.0, candidates=1)
    embedding = sample_diffusion_prior(bundle.prior, text, seed=SEED, batch_size=batch, options=options)
    clock.stage("prior")
    options = DecodeOptions(steps=25, guidance_scale=8.0, sampler="ddpm")
    pictures = decode(bundle.decoder, embedding, text, seed=SEED, batch_size=batch, options=options)
    clock.stage("decoder")
    upsample(bundle.upsamplers[0], pictures, seed=SEED, options=UpsampleOptions(sampler="ddpm"))
    clock.stage("upsampler")
    return clock.seconds


class Clock:
    """Seconds since the last stage ended, what the device has still to do included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: Seconds = {}
        self._last = self._now()

    def stage(self, name: str) -> None:
        now = self._now()
        self.seconds[name], self._last = now - self._last, now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


# --- diffusers' ---


def run_theirs(pipeline: UnCLIPPipeline, batch: int) -> Seconds:
    """The pipeline opens a progress bar for each stage, which tells where one ends."""
    clock, opened = Clock(pipeline.device), iter(STAGES)
    plain = pipeline.progress_bar

    def progress_bar(*given, **options):
        clock.stage(next(opened))
        return plain(*given, **options)

    pipeline.progress_bar = progress_bar
    generators = [torch.Generator("cpu").manual_seed(SEED + i) for i in range(batch)]
    try:
        pipeline(CAPTION, num_images_per_prompt=batch, generator=generators, output_type="np")
    finally:
        del pipeline.progress_bar
    clock.stage(next(opened))
    return clock.seconds


def random_pipeline(device: torch.device, dtype: torch.dtype) -> UnCLIPPipeline:
    """Karlo's networks as diffusers builds them, with the random weights that it gives them."""
    with device, default_dtype(dtype):
        prior = PriorTransformer()
        nn.init.ones_(prior.clip_std)
        parts = {
            "prior": prior,
            "decoder": published.conditional_diffusers_unet(KARLO_DECODER),
            "text_encoder": CLIPTextModelWithProjection(published.TEXT_L),
            "text_proj": published.karlo_text_projection(),
            "super_res_first": published.plain_diffusers_unet(KARLO_UPSAMPLER),
            "super_res_last": published.plain_diffusers_unet(KARLO_UPSAMPLER),
        }
    return UnCLIPPipeline(
        **{name: part.eval().requires_grad_(False) for name, part in parts.items()},
        tokenizer=karlo.tiny_tokenizer(published.TEXT_L.max_position_embeddings),
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=UnCLIPScheduler(prediction_type="epsilon"),
    )


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    typer.run(main)
