"""Our upsampler against diffusers' at Karlo's size, 64 to 256 pixels, with the same random weights and noise.

Ours is `upsample`; theirs the upsampler's part of diffusers' UnCLIPPipeline: `UNet2DModel` and
`UnCLIPScheduler`. Karlo's last step runs a second network of the same shape; here one makes all steps.

    python benchmarks/upsampler.py [--steps 2] [--batch 1] [--dtype bf16] [--device cpu] [--help]
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from common import DTYPES, SEED, choose_devices, exact_scheduler, introduce, random_weights
from diffusers import UNet2DModel
from torch import Tensor
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.formats.unet_rules import diffusers_rules
from unclip.core.networks.unet import UNet, UNetConfig
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import UpsamplerStage
from unets import Pair, compare, denoised, diffusers_shape, in_ours

LOW_SIZE = 64
KARLO = UNetConfig(
    image_size=256,
    concat_channels=3,
    channels=320,
    channel_mult=(1, 2, 3, 4),
    res_blocks=(3, 3, 3, 3),
    film=False,
)
DIFFUSION = DiffusionSpec(prediction="eps", variance="fixed_small", clip_x0=1.0)


def main(
    steps: Annotated[
        int, typer.Option(min=2, help="Sampling steps; diffusers' scheduler takes no fewer than 2.")
    ] = 2,
    batch: Annotated[int, typer.Option(help="Pictures.")] = 1,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    device: Annotated[list[str], typer.Option(help="May be repeated; the CPU and a GPU by default.")] = (),
    channels_last: Annotated[bool, typer.Option(help="Give diffusers' network that layout too.")] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each system, in turn; the median counts.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
) -> None:
    """Time both systems and compare what they give."""
    if threads:
        torch.set_num_threads(threads)
    for index, name in enumerate(choose_devices(device)):
        with torch.device("meta"):
            theirs = UNet2DModel(**diffusers_shape(KARLO), add_attention=False)
        theirs = random_weights(theirs, name, DTYPES[dtype])
        ours = in_ours(theirs, KARLO, diffusers_rules(KARLO))
        if channels_last:
            theirs.to(memory_format=torch.channels_last)
        if not index:
            introduce(f"{steps} steps, batch {batch}", ours, dtype)
        compare(name, pair(ours, theirs, batch, steps), steps, repeats)


def pair(ours: UNet, theirs: UNet2DModel, batch: int, steps: int) -> Pair:
    parameter = next(ours.parameters())
    low = torch.rand(batch, 3, LOW_SIZE, LOW_SIZE, generator=torch.Generator().manual_seed(1))
    low = low.to(parameter.device)
    large = 2 * low - 1
    large = F.interpolate(large, KARLO.image_size, mode="bicubic", antialias=True).to(parameter.dtype)
    shape = (KARLO.in_channels, KARLO.image_size, KARLO.image_size)
    x = draw_noise(image_generators(SEED, batch), shape, parameter.device).to(parameter)
    t = torch.full((batch,), 500, device=parameter.device)

    @torch.no_grad()
    def evaluate_ours() -> Tensor:
        rows = [part.contiguous(memory_format=torch.channels_last) for part in (x, large)]
        return ours(rows[0], t, concat=rows[1])

    @torch.no_grad()
    def call(state: Tensor, t: Tensor) -> Tensor:
        return theirs(torch.cat([state.to(large.dtype), large], dim=1), t).sample.float()

    def sample_ours() -> Tensor:
        states: list[Tensor] = []
        stage = UpsamplerStage(ours, LOW_SIZE, DIFFUSION)
        options = UpsampleOptions(steps=steps, sampler="ddpm")
        upsample(stage, low, seed=SEED, options=options, callback=lambda s: states.append(s.x))
        return states[-1]

    def sample_theirs() -> Tensor:
        generators = image_generators(SEED, batch)
        noise = draw_noise(generators, shape, parameter.device)
        scheduler = exact_scheduler(steps, variance_type="fixed_small_log", prediction_type="epsilon")
        return denoised(call, scheduler, noise, generators)

    return Pair(evaluate_ours, lambda: call(x, t), sample_ours, sample_theirs)


if __name__ == "__main__":
    typer.run(main)
