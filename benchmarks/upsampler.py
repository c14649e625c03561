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
from common import SEED, Batch, ChannelsLast, Compile, Devices, Dtype, Repeats, Threads, exact_scheduler
from diffusers import UNet2DModel
from torch import Tensor
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.formats.mapping.unet_rules import diffusers_rules
from unclip.core.networks.unet import UNet
from unclip.core.networks.upsampled import UpsampledConv2d
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import UpsamplerStage
from unclip.tests.helpers.published import plain_diffusers_unet
from unclip.tests.helpers.unet import KARLO_UPSAMPLER as KARLO
from unets import Comparison, Pair, denoised

LOW_SIZE = 64
DIFFUSION = DiffusionSpec(prediction="eps", variance="fixed_small", clip_x0=1.0)


def main(
    steps: Annotated[
        int, typer.Option(min=2, help="Sampling steps; diffusers' scheduler takes no fewer than 2.")
    ] = 2,
    batch: Batch = 1,
    dtype: Dtype = "bf16",
    device: Devices = (),
    channels_last: ChannelsLast = False,
    compile: Compile = False,
    repeats: Repeats = 1,
    threads: Threads = 0,
) -> None:
    """Time both systems and compare what they give."""
    Comparison(
        lambda: plain_diffusers_unet(KARLO),
        KARLO,
        diffusers_rules(KARLO),
        lambda ours, theirs: pair(ours, theirs, batch, steps),
        f"batch {batch}",
        steps,
        dtype,
        channels_last,
        compile,
        repeats,
    ).run(device, threads)


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
        return with_packed_weights(ours, (UpsampledConv2d,))(rows[0], t, concat=rows[1])

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
