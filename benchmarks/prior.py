"""The diffusion prior against diffusers' at Karlo's size, with the same random weights, noise and type.

Ours is `sample_diffusion_prior`; theirs the loop of diffusers' UnCLIPPipeline over `PriorTransformer` and
`UnCLIPScheduler`. Both get the features of one caption and of the empty one.

    python benchmarks/prior.py [--candidates 1 --candidates 8] [--dtype bf16] [--steps 25] [--help]
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

import torch
import typer
from common import (
    DTYPES,
    NULL_TOKENS,
    SEED,
    CaptionTokens,
    Dtype,
    Repeats,
    Run,
    Threads,
    caption,
    console,
    difference,
    exact_scheduler,
    in_turn,
    introduce,
    random_weights,
    timed,
)
from diffusers import PriorTransformer
from rich.table import Table
from torch import Tensor
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures
from unclip.core.networks.diffusion_prior import EXTRA_TOKENS, DiffusionPrior, DiffusionPriorConfig
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

KARLO = DiffusionPriorConfig(dim=768, text_dim=768)
SPACE = EmbeddingSpace("benchmark", KARLO.dim)
LIMIT = 5.0  # of x0, as in the diffusers conversion of Karlo


def main(
    candidates: Annotated[list[int], typer.Option(help="Candidates of the prompt; may be repeated.")] = (
        1,
        8,
    ),
    dtype: Dtype = "bf16",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 4.0,
    caption_tokens: CaptionTokens = 12,
    layers: Annotated[int, typer.Option(help="Fewer for a quick look.")] = KARLO.layers,
    repeats: Repeats = 1,
    threads: Threads = 0,
) -> None:
    """Time both systems and compare what they give."""
    if threads:
        torch.set_num_threads(threads)
    config = replace(KARLO, layers=layers)
    with torch.device("meta"):
        ours = DiffusionPrior(config)
    ours = random_weights(ours, "cpu", DTYPES[dtype])
    theirs = in_diffusers(ours)
    text = caption(SPACE, config.text_length, config.text_dim, caption_tokens)
    introduce(f"{steps} steps, guidance {guidance:g}, a caption of {caption_tokens} tokens", ours, dtype)
    run_diffusers(theirs, text, PriorOptions(steps=2, candidates=1))  # warms the allocator up
    table = Table("candidates", "system", "token passes", "seconds", "CPU seconds", "ratio", "difference")
    for count in candidates:
        options = PriorOptions(steps=steps, guidance_scale=guidance, candidates=count)
        first, mine, reference = compare(ours, theirs, text, options, repeats)
        apart = f"{difference(mine.samples, reference.samples):.1e}"
        full = steps * 2 * count * (config.text_length + EXTRA_TOKENS)
        prefix, null, stepped = caption_tokens + 1 + steps, NULL_TOKENS + 1 + steps, steps * 2 * count * 2
        for system, tokens, run in (
            ("diffusers", full, reference),
            ("unclip", prefix + stepped, mine),
            ("unclip, first call", prefix + null + stepped, first),
        ):
            times = f"{run.seconds:.2f}", f"{run.cpu_seconds:.2f}", f"{reference.seconds / run.seconds:.1f}×"
            table.add_row(str(count), system, str(tokens), *times, apart if run is mine else "")
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
    mine, reference = in_turn(
        lambda: run_ours(ours, text, options), lambda: run_diffusers(theirs, text, options), repeats
    )
    return first, mine, reference


# --- ours ---


def run_ours(network: DiffusionPrior, text: TextFeatures, options: PriorOptions) -> Tensor:
    states: list[Tensor] = []
    stage = PriorStage(network, SPACE, DiffusionSpec(prediction="x0", clip_x0=LIMIT))
    sample_diffusion_prior(
        stage, text, seed=SEED, options=options, callback=lambda step: states.append(step.x)
    )
    return states[-1]


def renewed(network: DiffusionPrior) -> DiffusionPrior:
    """Another module over the same weights, of which the pipeline keeps nothing yet."""
    with torch.device("meta"):
        other = DiffusionPrior(network.config)
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


# --- diffusers' ---


@torch.no_grad()
def run_diffusers(network: PriorTransformer, text: TextFeatures, options: PriorOptions) -> Tensor:
    """The loop of diffusers' UnCLIPPipeline, its samples drawn from the generator that serves ours."""
    scheduler = exact_scheduler(
        options.steps, variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=LIMIT
    )
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
