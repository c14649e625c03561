"""Memory of DALLE2-pytorch's U-Nets: the estimate holds what a run has, and is not far above it."""

from __future__ import annotations

import pytest
import torch
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.dalle2_unet import Dalle2UNet
from unclip.core.networks.dalle2_unet_config import Dalle2UNetConfig
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.memory import decode_memory
from unclip.core.pipelines.upsample import UpsampleOptions, upsample, upsample_memory
from unclip.core.stages import DecoderStage, UpsamplerConditions, UpsamplerStage

from .test_memory import check

DIM = 32
SPACE = EmbeddingSpace("clip-32", DIM, norm="unit")
COMMON = {
    "channels": 32,
    "channel_mult": (1, 2, 3),
    "res_blocks": (2, 2, 2),
    "groups": (8, 8, 8),
    "heads": 4,
    "head_dim": 32,
    "context_dim": 32,
    "cross_heads": 2,
    "cross_head_dim": 32,
}


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("attention", [(False, False, False), (False, True, True)])
def test_the_decoder(efficient: bool, attention: tuple[bool, ...]) -> None:
    given = ConditioningConfig(clip_dim=DIM, clip_tokens=4, context_dim=32)
    config = Dalle2UNetConfig(
        64,
        out_channels=6,
        self_attention=attention,
        linear_attention=True,
        memory_efficient=efficient,
        text_length=16,
        conditioning=given,
        **COMMON,
    )
    spec = DiffusionSpec(variance="learned_range")
    decoder = DecoderStage(Dalle2UNet(config).eval(), SPACE, spec)
    embedding = Embedding(torch.randn(1, DIM, generator=torch.Generator().manual_seed(0)), SPACE)
    options = DecodeOptions(steps=1, guidance_scale=2.0, pack_weights=False)
    check(
        decode_memory(decoder, 2.0, 1, embedding),
        decoder.network,
        lambda: decode(decoder, embedding, seed=0, options=options),
    )


def test_the_upsampler() -> None:
    config = Dalle2UNetConfig(
        64,
        concat_channels=3,
        noise_level=True,
        memory_efficient=True,
        self_attention=(False, False, False),
        **COMMON,
    )
    recipe = UpsamplerConditions("nearest", noise_level=0.2, noise_on="large")
    upsampler = UpsamplerStage(Dalle2UNet(config).eval(), 16, DiffusionSpec(), None, "", None, recipe)
    low = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = UpsampleOptions(steps=1, pack_weights=False)
    check(
        upsample_memory(upsampler, 1, 16, 16),
        upsampler.network,
        lambda: upsample(upsampler, low, seed=0, options=options),
    )
