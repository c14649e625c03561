"""The diffusion prior against diffusers' at Karlo's size, with the same random weights, noise and type.

Ours is `sample_diffusion_prior`; theirs the loop of diffusers' UnCLIPPipeline over `PriorTransformer` and
`UnCLIPScheduler`. Both get the features of one caption and of the empty one.

    python benchmarks/prior.py [--candidates 1 --candidates 8] [--dtype bf16] [--steps 25] [--help]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import typer
from diffusers import PriorTransformer, UnCLIPScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures
from unclip.core.networks.diffusion_prior import EXTRA_TOKENS, DiffusionPrior, DiffusionPriorConfig
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

KARLO = DiffusionPriorConfig(dim=768, text_dim=768)
SPACE = EmbeddingSpace("benchmark", KARLO.dim)
LIMIT = 5.0  # of x0, as in the diffusers conversion of Karlo
NULL_TOKENS = 2  # start and end
SEED = 0

console = Console(width=100)


@dataclass(frozen=True)
class Run:
    """Seconds on the clock and of the processor, and the final samples [candidates, D], standardised."""

    seconds: float
    cpu_seconds: float
    samples: Tensor


def main(
    candidates: Annotated[list[int], typer.Option(help="Candidates of the prompt; may be repeated.")] = (
        1,
        8,
    ),
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 4.0,
    caption_tokens: Annotated[int, typer.Option(help="Tokens of the caption, with start and end.")] = 12,
    layers: Annotated[int, typer.Option(help="Fewer for a quick look.")] = KARLO.layers,
    repeats: Annotated[int, typer.Option(help="Runs of each system, in turn; the median counts.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
) -> None:
    """Time both systems and compare what they give."""
    if threads:
        torch.set_num_threads(threads)
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    config = replace(KARLO, layers=layers)
    ours = random_prior(config, kind)
    theirs = in_diffusers(ours)
    text = caption(config, caption_tokens)
    parameters = sum(p.numel() for p in ours.parameters())
    console.print(
        f"{parameters / 1e9:.2f}B parameters, {dtype}, {steps} steps, guidance {guidance:g}, "
        f"a caption of {caption_tokens} tokens; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load before {os.getloadavg()[0]:.1f}"
    )
    run_diffusers(theirs, text, PriorOptions(steps=2, candidates=1))  # warms the allocator up
    table = Table("candidates", "system", "token passes", "seconds", "CPU seconds", "ratio", "difference")
    for count in candidates:
        options = PriorOptions(steps=steps, guidance_scale=guidance, candidates=count)
        first, mine, reference = compare(ours, theirs, text, options, repeats)
        difference = (mine.samples - reference.samples).abs().max() / reference.samples.std()
        full = steps * 2 * count * (config.text_length + EXTRA_TOKENS)
        prefix, null, stepped = caption_tokens + 1 + steps, NULL_TOKENS + 1 + steps, steps * 2 * count * 2
        for system, tokens, run in (
            ("diffusers", full, reference),
            ("unclip", prefix + stepped, mine),
            ("unclip, first call", prefix + null + stepped, first),
        ):
            times = f"{run.seconds:.2f}", f"{run.cpu_seconds:.2f}", f"{reference.seconds / run.seconds:.1f}×"
            table.add_row(str(count), system, str(tokens), *times, f"{difference:.1e}" if run is mine else "")
        table.add_section()
    console.print(table)
    console.print(
        "difference: largest, over the standard deviation of the samples. First call: packs the weights and "
        f"computes the null prefix. Load after {os.getloadavg()[0]:.1f}."
    )


def compare(
    ours: DiffusionPrior, theirs: PriorTransformer, text: TextFeatures, options: PriorOptions, repeats: int
) -> tuple[Run, Run, Run]:
    """The first call of ours, then the median of ours and of theirs, run in turn."""
    ours = renewed(ours)
    first = timed(lambda: run_ours(ours, text, options))
    mine, reference = [], []
    for _ in range(repeats):
        mine.append(timed(lambda: run_ours(ours, text, options)))
        reference.append(timed(lambda: run_diffusers(theirs, text, options)))
    return first, median(mine), median(reference)


def median(runs: list[Run]) -> Run:
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def timed(run: Callable[[], Tensor]) -> Run:
    start, cpu_start = time.perf_counter(), time.process_time()
    samples = run()
    return Run(time.perf_counter() - start, time.process_time() - cpu_start, samples)


# --- ours ---


def run_ours(network: DiffusionPrior, text: TextFeatures, options: PriorOptions) -> Tensor:
    states: list[Tensor] = []
    stage = PriorStage(network, SPACE, DiffusionSpec(prediction="x0", clip_x0=LIMIT))
    sample_diffusion_prior(
        stage, text, seed=SEED, options=options, callback=lambda step: states.append(step.x)
    )
    return states[-1]


def random_prior(config: DiffusionPriorConfig, dtype: torch.dtype) -> DiffusionPrior:
    """Random weights, cheaply: all are cut from one block of normal noise."""
    with torch.device("meta"):
        network = DiffusionPrior(config).to(dtype)
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    noise = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
        elif isinstance(module, nn.Linear):
            fill(module.weight, noise, module.in_features**-0.5)
            fill(module.bias, noise, 0.02)
    fill(network.positions, noise, 0.5)
    fill(network.query, noise, 0.5)
    return network


def fill(parameter: Tensor, noise: Tensor, std: float) -> None:
    for part in parameter.view(-1).split(len(noise)):
        torch.mul(noise[: len(part)], std, out=part)


def renewed(network: DiffusionPrior) -> DiffusionPrior:
    """Another module over the same weights, of which the pipeline keeps nothing yet."""
    with torch.device("meta"):
        other = DiffusionPrior(network.config)
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def caption(config: DiffusionPriorConfig, valid: int) -> TextFeatures:
    generator = torch.Generator().manual_seed(1)

    def features(count: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens = torch.randn(1, config.text_length, config.text_dim, generator=generator)
        return (
            tokens,
            torch.arange(config.text_length)[None] < count,
            torch.randn(1, config.dim, generator=generator),
        )

    return TextFeatures(*features(valid), SPACE, TextFeatures(*features(NULL_TOKENS), SPACE))


# --- diffusers' ---


@torch.no_grad()
def run_diffusers(network: PriorTransformer, text: TextFeatures, options: PriorOptions) -> Tensor:
    """The loop of diffusers' UnCLIPPipeline, its samples drawn from the generator that serves ours."""
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=LIMIT
    )
    # Its float32 tables are off by a few 1e-4 at t = 0, which would hide how close the networks are.
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.set_timesteps(options.steps)
    rows, dtype = options.candidates, network.dtype
    generators = image_generators(SEED, 1) * rows
    both = [text.null.expand(rows), text.expand(rows)]
    tokens = torch.cat([features.tokens for features in both]).to(dtype)
    pooled = torch.cat([features.pooled for features in both]).to(dtype)
    mask = torch.cat([features.mask for features in both])
    x = draw_noise(generators, (network.config.embedding_dim,))
    for t, previous in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        output = network(
            torch.cat([x, x]).to(dtype),
            timestep=t,
            proj_embedding=pooled,
            encoder_hidden_states=tokens,
            attention_mask=mask,
        ).predicted_image_embedding.float()
        unconditional, conditional = output.chunk(2)
        guided = unconditional + options.guidance_scale * (conditional - unconditional)
        x = scheduler.step(guided, t, x, generator=generators, prev_timestep=previous).prev_sample
    return x


def in_diffusers(prior: DiffusionPrior) -> PriorTransformer:
    """diffusers' network over the memory of ours."""
    config = prior.config
    with torch.device("meta"):
        theirs = PriorTransformer(num_layers=config.layers)
    length = config.text_length + EXTRA_TOKENS
    theirs.causal_attention_mask = torch.full((1, length, length), -10000.0).triu(1)
    first, _, second = prior.time_embed
    modules = {
        "encoder_hidden_states_proj": prior.text_in,
        "embedding_proj": prior.pooled_in,
        "proj_in": prior.image_in,
        "time_embedding.linear_1": first,
        "time_embedding.linear_2": second,
        "norm_out": prior.out_norm,
        "proj_to_clip_embeddings": prior.out,
    }
    statistic = torch.ones(1, config.dim, dtype=prior.query.dtype)
    state = {
        "positional_embedding": prior.positions[None],
        "prd_embedding": prior.query[None, None],
        "clip_mean": statistic,
        "clip_std": statistic,
    }
    for index, block in enumerate(prior.blocks):
        at = f"transformer_blocks.{index}."
        modules |= {
            at + "norm1": block.attention_norm,
            at + "attn1.to_out.0": block.attention_out,
            at + "norm3": block.mlp_norm,
            at + "ff.net.0.proj": block.mlp_in,
            at + "ff.net.2": block.mlp_out,
        }
        for name in ("weight", "bias"):
            for part, value in zip("qkv", getattr(block.qkv, name).chunk(3), strict=True):
                state[f"{at}attn1.to_{part}.{name}"] = value
    for at, module in modules.items():
        state |= {f"{at}.weight": module.weight, f"{at}.bias": module.bias}
    theirs.load_state_dict(state, assign=True)
    return theirs.eval().requires_grad_(False)


if __name__ == "__main__":
    typer.run(main)
