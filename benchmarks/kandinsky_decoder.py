"""Kandinsky 2.2's decoder for `decoder.py`: ours, and the loop of diffusers' KandinskyV22Pipeline.

Theirs is `UNet2DConditionModel` and `DDPMScheduler`. Both get one image embedding and another one for what
guidance leads away from. What both paint is the latent; the autoencoder is `autoencoder.py`.
"""

from __future__ import annotations

import torch
from common import SEED
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.files.weight_source import WeightSource
from unclip.core.formats.layouts.kandinsky import DIFFUSION_22, HEAD_DIM, LATENT_CHANNELS, LATENT_SIZE
from unclip.core.formats.mapping.kandinsky_rules import diffusers_conditioner_rules, diffusers_conditioning
from unclip.core.formats.mapping.keymap import Rule
from unclip.core.formats.mapping.unet_rules import diffusers_config, diffusers_rules
from unclip.core.networks.unet import UNet, UNetCondition
from unclip.core.networks.unet_config import UNetConfig
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.stages import DecoderStage
from unclip.tests.helpers.kandinsky import published_unet
from unclip.tests.helpers.kandinsky_files import scheduler_22
from unets import Pair

SPACE = EmbeddingSpace("benchmark", 1280)


def random_decoder(levels: int) -> UNet2DConditionModel:
    """diffusers' U-Net, or its finest levels of four."""
    return published_unet("2.2", levels)


def shape_of(source: WeightSource) -> tuple[UNetConfig, list[Rule]]:
    """Our network's config, and what its tensors are called in diffusers'."""
    config = diffusers_config(
        source,
        "",
        image_size=LATENT_SIZE,
        head_dim=HEAD_DIM,
        conditioning=diffusers_conditioning(source),
        in_channels=LATENT_CHANNELS,
    )
    return config, diffusers_rules(config) + diffusers_conditioner_rules(config.conditioning)


def pair(ours: UNet, theirs: UNet2DConditionModel, side: int, batch: int, options: DecodeOptions) -> Pair:
    """``side``: of the latent."""
    parameter = next(ours.parameters())
    draw = torch.Generator().manual_seed(2)
    vectors, negative = (torch.randn(batch, SPACE.dim, generator=draw).to(parameter) for _ in range(2))
    shape = (LATENT_CHANNELS, side, side)
    x = draw_noise(image_generators(SEED, 2 * batch), shape, parameter.device).to(parameter)
    t = torch.full((2 * batch,), 500, device=parameter.device)

    @torch.no_grad()
    def evaluate_ours() -> Tensor:
        conditions = [ours.condition(clip_embedding=each) for each in (negative, vectors)]
        rows = x.contiguous(memory_format=torch.channels_last)
        return with_packed_weights(ours)(rows, t, UNetCondition.cat(*conditions))

    def sample_ours() -> Tensor:
        states: list[Tensor] = []
        stage = DecoderStage(ours, SPACE, DIFFUSION_22)  # without its autoencoder: only the steps
        given = [Embedding(each.float(), SPACE) for each in (vectors, negative)]
        decode(
            stage,
            given[0],
            seed=SEED,
            options=options,
            noise=draw_noise(image_generators(SEED, batch), shape, parameter.device),
            negative_embedding=given[1],
            callback=lambda step: states.append(step.x),
        )
        return states[-1]

    return Pair(
        evaluate_ours,
        lambda: network_call(theirs, vectors, negative)(x, t),
        sample_ours,
        lambda: sample_diffusers(theirs, vectors, negative, shape, options),
    )


@torch.no_grad()
def sample_diffusers(
    theirs: UNet2DConditionModel,
    vectors: Tensor,
    negative: Tensor,
    shape: tuple[int, ...],
    options: DecodeOptions,
) -> Tensor:
    """The pipeline's loop: the variance that the network gives is dropped, as its scheduler has its own."""
    generators = image_generators(SEED, len(vectors))
    call = network_call(theirs, vectors, negative)
    scheduler: DDPMScheduler = scheduler_22()
    scheduler.set_timesteps(options.steps)
    x = draw_noise(generators, shape, vectors.device)
    for t in scheduler.timesteps:
        null, conditional = call(torch.cat([x, x]).to(vectors.dtype), t).float().chunk(2)
        null, conditional = null[:, : shape[0]], conditional[:, : shape[0]]
        guided = null + options.guidance_scale * (conditional - null)
        x = scheduler.step(guided, t, x, generator=generators).prev_sample
    return x


def network_call(theirs: UNet2DConditionModel, vectors: Tensor, negative: Tensor):
    """Their network as a function of x_t [2B, 4, H, W], negative rows first, and t."""
    added = {"image_embeds": torch.cat([negative, vectors])}

    @torch.no_grad()
    def call(x: Tensor, t: Tensor) -> Tensor:
        return theirs(x, t, encoder_hidden_states=None, added_cond_kwargs=added, return_dict=False)[0]

    return call
