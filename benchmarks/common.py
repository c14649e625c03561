"""What the benchmarks share: the clock, cheap random weights, and diffusers' scheduler as exact as ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from diffusers import UnCLIPScheduler
from rich.console import Console
from torch import Tensor, nn
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures

SEED = 0
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NULL_TOKENS = 2  # of the empty caption: start and end

console = Console(width=110)

# --- options ---

Batch = Annotated[int, typer.Option(help="Pictures.")]
Dtype = Annotated[str, typer.Option(help="bf16, fp32 or, on a GPU, fp16.")]
CaptionTokens = Annotated[int, typer.Option(help="Tokens of the caption, with start and end.")]
Devices = Annotated[list[str], typer.Option(help="May be repeated; the CPU and a GPU by default.")]
ChannelsLast = Annotated[bool, typer.Option(help="Give diffusers' network that layout too.")]
Compile = Annotated[bool, typer.Option(help="Ours through torch.compile, as the node unCLIP Compile.")]
Repeats = Annotated[int, typer.Option(help="Runs of each system, in turn; the median counts.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")]

# --- the clock ---


@dataclass(frozen=True)
class Run:
    """Seconds on the clock and of the processor, and the final samples [B, …], as the sampler leaves them."""

    seconds: float
    cpu_seconds: float
    samples: Tensor


def timed(run: Callable[[], Tensor]) -> Run:
    start, cpu_start = time.perf_counter(), time.process_time()
    samples = run()
    if samples.is_cuda:
        torch.cuda.synchronize(samples.device)
    return Run(time.perf_counter() - start, time.process_time() - cpu_start, samples)


def in_turn(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repeats: int) -> tuple[Run, Run]:
    """The median of each."""
    runs = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    mine, reference = (sorted(column, key=lambda run: run.seconds) for column in zip(*runs, strict=True))
    return mine[repeats // 2], reference[repeats // 2]


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the standard deviation of what was expected."""
    return ((found.float() - expected.float()).abs().max() / expected.float().std()).item()


def introduce(what: str, network: nn.Module, dtype: str) -> None:
    parameters = sum(p.numel() for p in network.parameters())
    console.print(
        f"{parameters / 1e9:.2f}B parameters, {dtype}, {what}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load before {os.getloadavg()[0]:.1f}"
    )


# --- weights ---


def random_weights(network: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """A network built on the meta device with random weights, cheaply: all are cut from one block of noise.

    They keep activations about one. Parameters outside of layers get noise of standard deviation 0.5.
    """
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    noise = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            _fill(module.weight, noise, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                _fill(module.bias, noise, 0.02)
        else:
            for parameter in module.parameters(recurse=False):
                _fill(parameter, noise, 0.5)
    return network


def _fill(parameter: Tensor, noise: Tensor, std: float) -> None:
    for part in parameter.view(-1).split(len(noise)):
        torch.mul(noise[: len(part)], std, out=part)


def caption(space: EmbeddingSpace, length: int, width: int, valid: int) -> TextFeatures:
    """Random features of a caption of so many valid tokens, and of the empty one."""
    generator = torch.Generator().manual_seed(1)

    def features(count: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens = torch.randn(1, length, width, generator=generator)
        return (
            tokens,
            torch.arange(length)[None] < count,
            torch.randn(1, space.dim, generator=generator),
        )

    return TextFeatures(*features(valid), space, TextFeatures(*features(NULL_TOKENS), space))


# --- diffusers ---


def exact_scheduler(steps: int, **options: object) -> UnCLIPScheduler:
    """Its float32 tables are off by a few 1e-4 at t = 0, which would hide how close the networks are."""
    scheduler = UnCLIPScheduler(**options)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.set_timesteps(steps)
    return scheduler
