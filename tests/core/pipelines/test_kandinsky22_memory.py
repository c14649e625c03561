"""What Kandinsky 2.2 takes of a card's memory at its real size, reckoned without any: networks on meta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import EmbeddingSpace
from unclip.core.formats.files.weight_source import WeightSource, source_of_tensors
from unclip.core.formats.mapping.kandinsky_rules import diffusers_conditioning
from unclip.core.formats.mapping.movq_rules import diffusers_movq_config
from unclip.core.formats.mapping.unet_rules import diffusers_config
from unclip.core.memory import memory_of
from unclip.core.networks.clip import ClipNetwork, preset
from unclip.core.networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.core.networks.movq import MoVQ
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.memory import decode_memory, encode_memory, prior_memory
from unclip.core.pipelines.towers import image_tower, text_tower
from unclip.core.stages import AutoencoderStage, ClipStage, DecoderStage, PriorStage

from ...helpers.kandinsky import published_movq, published_unet

GIB = 2**30
SPACE = EmbeddingSpace("laion/ViT-bigG-14", 1280)
PIXELS = (768, 768)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build().half()


def shapes(build: Callable[[], nn.Module]) -> WeightSource:
    with torch.device("meta"):
        return source_of_tensors(Path("shapes"), build().state_dict())


@pytest.fixture(scope="module")
def clip() -> ClipStage:
    return ClipStage(on_meta(lambda: ClipNetwork(preset("ViT-bigG-14"))), lambda _: None, SPACE)


@pytest.fixture(scope="module")
def decoder() -> DecoderStage:
    source = shapes(lambda: published_unet("2.2"))
    config = diffusers_config(
        source,
        "",
        image_size=64,
        head_dim=64,
        conditioning=diffusers_conditioning(source),
        in_channels=4,
    )
    movq = on_meta(lambda: MoVQ(diffusers_movq_config(shapes(published_movq))))
    return DecoderStage(
        on_meta(lambda: UNet(config)), SPACE, DiffusionSpec(), autoencoder=AutoencoderStage(movq)
    )


def test_kandinsky22_fits_into_8_gb_stage_by_stage(clip, decoder):
    """Weights of the stage that runs and the estimate of what running it takes, in fp16, with guidance.

    Not counted: what the driver and its libraries take, and workspaces of kernels. For these ComfyUI keeps a
    reserve, and 8 GB leave 1 GiB.
    """
    prior_config = DiffusionPriorConfig(dim=1280, text_dim=1280)
    prior = PriorStage(on_meta(lambda: DiffusionPrior(prior_config)), SPACE, DiffusionSpec())
    text, image = text_tower(clip), image_tower(clip)
    needed = {
        "text tower": memory_of(text.network) + encode_memory(text, captions=2),
        "image tower": memory_of(image.network) + encode_memory(image, 1),
        "prior": memory_of(prior.network) + prior_memory(prior, 1, 2, 25),
        "decoder": memory_of(decoder.network) + decode_memory(decoder, 4.0, 1, size=PIXELS),
    }
    assert max(needed.values()) <= 7 * GIB, needed
    # What they are, so that a stage that is forgotten, or counted empty, is found.
    expected = {"text tower": 1.3, "image tower": 3.5, "prior": 2.0, "decoder": 3.75}
    found = {name: round(size / GIB, 2) for name, size in needed.items()}
    assert found == pytest.approx(expected, rel=0.05)
    together = memory_of((clip, prior, decoder))
    assert together > 8.5 * GIB, "all at once they would not fit"


def test_the_towers_of_kandinsky22_are_apart(clip):
    text, image = text_tower(clip), image_tower(clip)
    whole = memory_of(clip.network)
    assert whole / GIB == pytest.approx(4.73, abs=0.05)
    assert memory_of(text.network) + memory_of(image.network) == whole
    assert memory_of((text.network, image.network, clip.network)) == whole, "over the same weights"
    assert memory_of(text.network) < 1.4 * GIB


def test_the_movq_of_kandinsky22_takes_less_by_tiles_where_memory_is_short(decoder):
    alone = replace(decoder, autoencoder=None)
    sampling = decode_memory(alone, 4.0, 1, size=(96, 96))
    whole = decode_memory(decoder, 4.0, 1, size=PIXELS)
    assert sampling < 3.5 * GIB and whole < 3.5 * GIB
    large = decode_memory(decoder, 4.0, 1, size=(2048, 2048))
    assert large > 7 * GIB, "so that tiles are what fits, see canvas"
