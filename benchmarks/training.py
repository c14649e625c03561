"""The training loop against bare passes of its network, and against dalle2-pytorch's trainer of priors.

The loop is all that `unclip train` does: it reads and prepares data, embeds captions (and pictures) with a
frozen CLIP, draws noise, takes the loss, clips gradients, steps, averages and logs. Bare is the same network
in the same precision on tensors that lie in memory, those that the loop's first step gives it: forward,
backward, the same optimizer and EMA, nothing else.

    python benchmarks/training.py [prior decoder dalle2-pytorch] [--precision bf16] [--rounds 4] [--help]

dalle2-pytorch's `DiffusionPriorTrainer` (pip install dalle2-pytorch) is given embeddings and text encodings
that lie in memory, in the same precision. Everything runs in turn, a few steps each; medians over all steps.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import Threads, console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from unclip.core.data.pictograms import Pictogram, write_shards
from unclip.core.embeddings.space import EmbeddingSpace
from unclip.core.formats.mapping.tokenizing import build_tokenizer
from unclip.core.formats.native.checkpoints import save_stage
from unclip.core.networks.clip import (
    ClipConfig,
    ClipNetwork,
    ClipTextConfig,
    ClipVisionConfig,
)
from unclip.core.stages import ClipStage
from unclip.core.training.ema import ExponentialMovingAverage
from unclip.core.training.loop import LoopReport, train
from unclip.core.training.optimizer import make_optimizer
from unclip.core.training.recipe import Recipe
from unclip.core.training.settings import LoopConfig
from unclip.core.training.stages import build_recipe, overlay, read_toml

MINI = Path(__file__).parents[1] / "models" / "mini"
WORDS = ("red", "small", "old", "dog", "house", "near", "photo", "painting", "blue", "tree", "street", "car")
SKIPPED = 1  # step of each go that is left out: nothing is read ahead yet

# On the clock, and of the processor: where a machine is shared only the second tells anything.
Times = tuple[float, float]

Systems = Annotated[list[str], typer.Argument(help="prior, decoder, dalle2-pytorch.")]


def main(
    systems: Systems = ("prior", "decoder", "dalle2-pytorch"),
    precision: Annotated[str, typer.Option(help="bf16 or no, on both sides.")] = "bf16",
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of a go that count.")] = 4,
    rounds: Annotated[int, typer.Option(help="Goes of each side, in turn.")] = 4,
    width: Annotated[int, typer.Option(help="Of the prior.")] = 768,
    layers: Annotated[int, typer.Option(help="Of the prior.")] = 12,
    text_layers: Annotated[
        int, typer.Option(help="Of the CLIP text encoder whose features it learns from.")
    ] = 3,
    cpu: Annotated[bool, typer.Option(help="Even where there is a GPU.")] = False,
    threads: Threads = 0,
) -> None:
    """Time the loop and what it is compared with."""
    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    console.print(
        f"{precision}, batch {batch}, AdamW and EMA on both sides, {device}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load before {os.getloadavg()[0]:.1f}"
    )
    table = Table("network", "size", "side", "images/s", "images/CPU s", "ratio", "ratio of CPU s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop = {
            "steps": 10_000,
            "batch_size": batch,
            "learning_rate": 1e-4,
            "precision": precision,
            "compile": False,
            "log_every": 1,
        }
        for system in systems:
            if system == "decoder":
                config, recipe = mini_decoder(folder, loop)
            else:
                config, recipe = prior(folder, loop, width, layers, text_layers)
            other = dalle2_pytorch if system == "dalle2-pytorch" else bare
            compare(
                system, config, recipe, other(config, recipe, device), (rounds, steps, folder, cpu), table
            )
    console.print(table)
    console.print(f"Load after {os.getloadavg()[0]:.1f}.")


def compare(
    system: str, config: LoopConfig, recipe: Recipe, step: Callable[[], None], how: tuple, table: Table
) -> None:
    """Take both in turn, and add their rows to the table."""
    rounds, steps, folder, cpu = how
    ours: list[Times] = []
    theirs: list[Times] = []
    for number in range(rounds):
        ours += loop_times(recipe, config, folder / f"{system}-{number}", steps, cpu)
        theirs += step_times(step, steps)
    parameters = sum(value.numel() for value in recipe.network.parameters()) / 1e6
    sides = ("the loop", "its trainer" if system == "dalle2-pytorch" else "bare")
    medians = [[statistics.median(column) for column in zip(*times, strict=True)] for times in (ours, theirs)]
    for side, (clock, processor) in zip(sides, medians, strict=True):
        speeds = [f"{config.batch_size / seconds:.1f}" for seconds in (clock, processor)]
        ratios = [f"{medians[1][i] / medians[0][i]:.2f}" if side == "the loop" else "" for i in range(2)]
        table.add_row(system, f"{parameters:.1f} M", side, *speeds, *ratios)
    table.add_section()


# --- the loop ---


class Enough(Exception):  # noqa: N818
    """Ends a run that is only timed, before it writes a checkpoint."""


def loop_times(recipe: Recipe, config: LoopConfig, folder: Path, steps: int, cpu: bool) -> list[Times]:
    """Of each step, from the end of the one before."""
    ends: list[Times] = []

    def on_step(_report: LoopReport) -> None:
        ends.append(now())
        if len(ends) == SKIPPED + steps:
            raise Enough

    with suppress(Enough):
        train(recipe, config, folder, on_step, cpu=cpu)
    return [since(before, after) for before, after in itertools.pairwise(ends)][SKIPPED - 1 :]


def mini_decoder(folder: Path, loop: dict[str, Any]) -> tuple[LoopConfig, Recipe]:
    """mini's decoder with the CLIP model of mini, on pictograms made here."""
    if not (folder / "pictograms").exists():
        write_shards(pictograms(512), folder / "pictograms")
    ours = {
        "clip": str(MINI / "clip.safetensors"),
        "data": {"shards": str(folder / "pictograms"), "styles": [], "groups": []},
        "loop": loop,
    }
    config, recipe = build_recipe(
        "decoder", overlay(read_toml(MINI / "configs" / "decoder.toml"), ours), "mini"
    )
    return config.loop, recipe


def prior(
    folder: Path, loop: dict[str, Any], width: int, layers: int, text_layers: int
) -> tuple[LoopConfig, Recipe]:
    """A prior in a space of 768 values, on embeddings with captions as clip-retrieval writes them."""
    clip = folder / "clip.safetensors"
    if not clip.exists():
        write_clip(clip, text_layers)
        write_embeddings(folder / "embeddings", 4096)
    settings = {
        "clip": str(clip),
        "data": {"source": "embeddings", "path": str(folder / "embeddings")},
        "model": {"dim": 768, "text_dim": 768, "width": width, "layers": layers, "heads": width // 64},
        "diffusion": {"schedule": "cosine", "prediction": "x0"},
        "loop": loop,
    }
    config, recipe = build_recipe("prior", settings, "prior")
    return config.loop, recipe


# --- what it is compared with ---


def bare(config: LoopConfig, recipe: Recipe, device: str) -> Callable[[], None]:
    """Forward, backward, optimizer and EMA of a copy of the network."""
    arguments, named = inputs_of(recipe, device)
    network = copy.deepcopy(recipe.network).to(device).train()
    optimizer = make_optimizer(network, config.optimizer, config.learning_rate, 0.01, (0.9, config.beta2))
    ema = ExponentialMovingAverage(network, config.ema_decay)

    def step() -> None:
        with attention(device):
            with autocast(config.precision, device):
                output = network(*arguments, **named)
            output.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(network, 0)

    return step


def inputs_of(recipe: Recipe, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the loss gives the network in the first step."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    recipe.network.to(device)

    class Recorder(nn.Module):
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            found.append((arguments, named))
            return recipe.network(*arguments, **named)

    with torch.no_grad():
        recipe.loss(Recorder(), recipe.batch(0), torch.Generator(device).manual_seed(0))
    return found[0]


def dalle2_pytorch(config: LoopConfig, recipe: Recipe, device: str) -> Callable[[], None]:
    """A step of its prior trainer, on a network of the same width and depth."""
    from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork
    from dalle2_pytorch.trainer import DiffusionPriorTrainer

    shape = recipe.network.config
    network = DiffusionPriorNetwork(
        dim=shape.width,
        depth=shape.layers,
        heads=shape.heads,
        dim_head=shape.width // shape.heads,
        max_text_len=shape.text_length,
        num_timesteps=1000,
    )
    model = DiffusionPrior(
        net=network, image_embed_dim=shape.dim, timesteps=1000, condition_on_text_encodings=True
    )
    trainer = DiffusionPriorTrainer(
        model,
        lr=config.learning_rate,
        wd=0.01,
        use_ema=True,
        ema_update_every=1,
        ema_update_after_step=0,
        max_grad_norm=1.0,
        accelerator_mixed_precision=config.precision,
        accelerator_cpu=device == "cpu",
    )
    generator = torch.Generator().manual_seed(0)
    rows = config.batch_size
    image, text = (torch.randn(rows, shape.dim, generator=generator).to(device) for _ in range(2))
    tokens = torch.randn(rows, shape.text_length, shape.text_dim, generator=generator)
    lengths = [len(caption.split()) + 2 for caption in captions(rows)]
    tokens *= torch.arange(shape.text_length)[None, :, None] < torch.tensor(lengths)[:, None, None]
    tokens = tokens.to(device)

    def step() -> None:
        trainer(text_embed=text, image_embed=image, text_encodings=tokens)
        trainer.update()

    return step


def step_times(step: Callable[[], None], steps: int) -> list[Times]:
    times = []
    for _ in range(SKIPPED + steps):
        start = now()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(since(start, now()))
    return times[SKIPPED:]


def now() -> Times:
    return time.perf_counter(), time.process_time()


def since(start: Times, end: Times) -> Times:
    return end[0] - start[0], end[1] - start[1]


def autocast(precision: str, device: str) -> Any:
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device, types[precision]) if precision in types else nullcontext()


def attention(device: str) -> Any:
    """As the loop has it."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


# --- data made on the spot ---


def captions(count: int) -> list[str]:
    """Of 5 to 20 words."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 20))) for _ in range(count)]


def write_clip(path: Path, text_layers: int) -> None:
    """A CLIP model with a text encoder of ViT-L/14's width, and next to no image encoder."""
    config = ClipConfig(
        embed_dim=768,
        vision=ClipVisionConfig(width=64, layers=1, image_size=32, patch_size=16),
        text=ClipTextConfig(width=768, heads=12, layers=text_layers),
    )
    torch.manual_seed(0)
    space = EmbeddingSpace("benchmark", 768)
    save_stage(ClipStage(ClipNetwork(config), build_tokenizer(config), space), path, max_shard_bytes=None)


def write_embeddings(folder: Path, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    vectors = np.random.default_rng(0).normal(size=(count, 768)).astype(np.float16)
    np.save(folder / "img_emb" / "img_emb_0.npy", vectors)
    parquet.write_table(
        pyarrow.table({"caption": captions(count)}), folder / "metadata" / "metadata_0.parquet"
    )


def pictograms(count: int) -> list[Pictogram]:
    """Discs, a few in each picture."""
    rng = random.Random(0)

    def disc() -> str:
        x, y, radius = (rng.randint(2, 14) for _ in range(3))
        return f'<circle cx="{x}" cy="{y}" r="{radius / 2}" fill="#{rng.randrange(2**24):06x}"/>'

    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    return [
        Pictogram(
            key=f"noto/{number}",
            concept=" ".join(rng.choices(WORDS, k=2)),
            style="noto",
            group="objects",
            keywords=("thing",),
            svg=head + "".join(disc() for _ in range(4)) + "</svg>",
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    typer.run(main)
