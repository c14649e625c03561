"""A whole unCLIP system in miniature with random weights: every stage runs, in milliseconds."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.codec import fit_codec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.mapping.tokenizing import build_tokenizer
from unclip.core.formats.native.checkpoints import save_bundle
from unclip.core.networks.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from unclip.core.networks.clip import (
    ClipConfig,
    ClipNetwork,
    ClipTextConfig,
    ClipTokenizerConfig,
    ClipVisionConfig,
)
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_config import UNetConfig
from unclip.core.stages import Bundle, ClipStage, DecoderStage, PriorStage, UpsamplerStage

from .unet_small import tiny_unet

DIM, TEXT_WIDTH, TEXT_LENGTH = 32, 32, 16
DECODED_SIZE = 16
UPSAMPLED_SIZES = (32, 64)


def tiny_bundle(*, upsamplers: int = 2, space_id: str = "unclip/tiny", seed: int = 0) -> Bundle:
    """Decoder to 16 pixels, upsamplers to 32 and 64; the same weights for the same seed, on every machine."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of what `randomised` leaves as its constructor drew it
        return _tiny_bundle(upsamplers, space_id, torch.Generator().manual_seed(seed))


def _tiny_bundle(upsamplers: int, space_id: str, generator: torch.Generator) -> Bundle:
    space = EmbeddingSpace(space_id, DIM, mean=(0.1,) * DIM, std=(0.5,) * DIM)
    tokenizer = ClipTokenizerConfig(merges=1000)
    clip = ClipConfig(
        embed_dim=DIM,
        vision=ClipVisionConfig(width=64, layers=1, image_size=16, patch_size=8),
        text=ClipTextConfig(
            width=TEXT_WIDTH, heads=2, layers=1, context_length=TEXT_LENGTH, vocab_size=tokenizer.vocab_size
        ),
        tokenizer=tokenizer,
    )
    prior = DiffusionPriorConfig(
        dim=DIM, text_dim=TEXT_WIDTH, width=64, layers=1, heads=2, text_length=TEXT_LENGTH
    )
    ar_prior = AutoregressivePriorConfig(
        dim=DIM,
        text_dim=TEXT_WIDTH,
        components=8,
        buckets=8,
        match_buckets=4,
        width=32,
        layers=1,
        heads=2,
        text_length=TEXT_LENGTH,
        text_codes=True,
    )
    decoder = tiny_unet(
        DECODED_SIZE,
        attention=(8,),
        head_dim=32,
        conditioning=ConditioningConfig(
            clip_dim=DIM, clip_tokens=2, text_dim=TEXT_WIDTH, context_dim=32, standardised=True
        ),
    )
    low_sizes = (DECODED_SIZE, *UPSAMPLED_SIZES[:-1])
    built = tuple(
        UpsamplerStage(
            randomised(UNet(_upsampler_config(size)), generator), low, DiffusionSpec(prediction="v")
        )
        for low, size in zip(low_sizes, UPSAMPLED_SIZES, strict=True)
    )
    return Bundle(
        "tiny",
        clip=ClipStage(randomised(ClipNetwork(clip), generator), build_tokenizer(clip), space),
        prior=PriorStage(
            randomised(DiffusionPrior(prior), generator), space, DiffusionSpec(prediction="x0", clip_x0=5.0)
        ),
        decoder=DecoderStage(randomised(UNet(decoder), generator), space, DiffusionSpec(prediction="v")),
        upsamplers=built[:upsamplers],
        ar_prior=PriorStage(
            fit_codebook(randomised(AutoregressivePrior(ar_prior), generator), space, generator), space, None
        ),
    )


def captioned_bundle() -> Bundle:
    """The first upsampler reads captions, as some of DALLE2-pytorch do, the second does not."""
    bundle = tiny_bundle()
    assert bundle.clip is not None
    first, second = bundle.upsamplers
    reads = ConditioningConfig(text_pooled_dim=bundle.clip.space.dim)
    network = randomised(
        UNet(replace(first.network.config, conditioning=reads)), torch.Generator().manual_seed(1)
    )
    first = replace(first, network=network, space=bundle.clip.space)
    return replace(bundle, upsamplers=(first, second))


def of_one_size() -> Bundle:
    """The decoder has an embedding for each place, and so paints 16 pixels only."""
    bundle = tiny_bundle()
    assert bundle.decoder is not None
    config = replace(bundle.decoder.network.config, positions=True)
    network = randomised(UNet(config), torch.Generator().manual_seed(1))
    return replace(bundle, decoder=replace(bundle.decoder, network=network))


def write_tiny_bundle(folder: str | Path, *, upsamplers: int = 2, **options) -> Path:
    """Save :func:`tiny_bundle` as a bundle folder and return the folder."""
    saved = _written(upsamplers=upsamplers, **options)
    return Path(shutil.copytree(saved, folder, dirs_exist_ok=True))


@functools.cache
def _written(**options) -> Path:
    """The folder of such a bundle, which goes with the process: a copy takes less than to make it again."""
    folder = tempfile.TemporaryDirectory(prefix="unclip-tiny-")
    atexit.register(folder.cleanup)
    return Path(save_bundle(tiny_bundle(**options), Path(folder.name) / "tiny"))


def fit_codebook(
    network: AutoregressivePrior, space: EmbeddingSpace, generator: torch.Generator
) -> AutoregressivePrior:
    """Give a prior the codes of noise that has the statistics of the space."""
    config = network.config
    vectors = torch.randn(300, config.dim, generator=generator) * torch.linspace(1, 0.2, config.dim)
    codec = fit_codec(
        Embedding(space.unstandardise(vectors), space),
        torch.randn(300, config.dim, generator=generator),
        components=config.components,
        buckets=config.buckets,
        match_buckets=config.match_buckets,
    )
    network.codebook.load_state_dict(codec.state())
    return network


def _upsampler_config(size: int) -> UNetConfig:
    return tiny_unet(size, channel_mult=(1, 1), concat_channels=3, film=False, noise_level=True)


def randomised(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random weights everywhere: layers that start at zero would leave the conditions without any effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                std = (1.0 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return network.eval().requires_grad_(False)
