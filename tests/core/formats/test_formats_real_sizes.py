"""Published files at their real size go through the loaders, without their memory: tensors of shapes alone.

`benchmarks/real_size.py` does it with whole files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from unclip.core.formats.detect import identify
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts.layout import load_layout
from unclip.core.stages import Stage, StageName

from ...helpers.dalle2 import LAION, shapes
from ...helpers.dalle2_decoder import LAION_1_5B as LAION_DECODER
from ...helpers.dalle2_decoder import package
from ...helpers.glide import KINDS, real_shapes, write_merges
from ...helpers.karlo_original import original_decoder, original_prior, original_upsampler
from ...helpers.published import (
    TEXT_BIGG,
    VISION_BIGG,
    conditional_diffusers_unet,
    eclipse_prior,
    karlo_text_projection,
    plain_diffusers_unet,
)
from ...helpers.unet import KARLO_DECODER, KARLO_UPSAMPLER


def empty(found: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in found.items()}


def loaded(tensors: dict[str, Tensor], stage: StageName, folder: Path, device: str = "meta") -> Stage:
    source = source_of_tensors(folder / "x.pt", tensors)
    return load_layout(identify(source, stage), source, device, torch.bfloat16)


def parameters(*stages: Stage) -> int:
    return sum(value.numel() for stage in stages for value in stage.network.parameters())


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("base", 385_030_726),
        ("base-inpaint", 385_037_638),
        ("upsample", 398_361_286),
        ("upsample-inpaint", 398_368_198),
    ],
)
def test_glide(tmp_path: Path, kind: str, count: int) -> None:
    assert kind in KINDS
    write_merges(tmp_path)
    tensors = empty(real_shapes(kind))
    stage: StageName = "upsampler" if kind.startswith("upsample") else "decoder"
    text, unet = loaded(tensors, "clip", tmp_path), loaded(tensors, stage, tmp_path)
    assert parameters(text, unet) == count
    assert unet.network.config.image_size == (256 if stage == "upsampler" else 64)
    assert unet.network.config.attention == (32, 16, 8)
    assert text.network.config.heads == 8


def test_laions_prior(tmp_path: Path) -> None:
    zero = torch.zeros((), dtype=torch.bfloat16)  # its rotations have to be numbers
    tensors = {f"net.{name}": zero.expand(shape) for name, shape in shapes(LAION).items()}
    assert parameters(loaded(tensors, "prior", tmp_path, "cpu")) == 101_756_544


def test_karlos_and_kandinskys_prior(tmp_path: Path) -> None:
    torch.save((torch.zeros(768), torch.ones(768)), tmp_path / "ViT-L-14_stats.th")
    with torch.device("meta"):
        prior = PriorTransformer()
        tensors = original_prior(prior)
    stage = loaded(tensors, "prior", tmp_path)
    statistics = 2 * 768  # not the network's
    assert parameters(stage) == sum(value.numel() for value in prior.parameters()) - statistics
    assert stage.network.config.heads == 32


def test_karlos_decoder_and_upsampler(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = conditional_diffusers_unet(KARLO_DECODER)
        projection = karlo_text_projection()
        upsampler = plain_diffusers_unet(KARLO_UPSAMPLER)
        pair = original_upsampler(upsampler, upsampler)
        decoder = original_decoder(unet, projection)
    expected = sum(value.numel() for network in (unet, projection) for value in network.parameters())
    assert parameters(loaded(decoder, "decoder", tmp_path)) == expected
    assert round(expected / 1e6) == 893
    stage = loaded(pair, "upsampler", tmp_path)
    assert parameters(stage) == 2 * sum(value.numel() for value in upsampler.parameters())
    assert round(parameters(stage) / 2e6) == 692


def test_eclipses_prior(tmp_path: Path) -> None:
    with torch.device("meta"):
        prior = eclipse_prior()
    prior.save_config(tmp_path)
    assert round(parameters(loaded(prior.state_dict(), "prior", tmp_path)) / 1e6) == 33


def test_kandinskys_clip(tmp_path: Path) -> None:
    """Both encoders of bigG. The image encoder's heads are wider than those of all others."""
    with torch.device("meta"):
        theirs = CLIPTextModelWithProjection(TEXT_BIGG), CLIPVisionModelWithProjection(VISION_BIGG)
    captions, pictures = (loaded(network.state_dict(), "clip", tmp_path) for network in theirs)
    scales = 2  # each of ours has one, which no file holds
    expected = sum(value.numel() for network in theirs for value in network.parameters())
    assert parameters(captions, pictures) - scales == expected
    assert round(expected / 1e7) == 254
    assert captions.network.config.text.heads == 20
    assert pictures.network.config.vision.head_width == 104
    assert captions.space.id == pictures.space.id == "laion/ViT-bigG-14"


@pytest.mark.parametrize(("version", "kernel"), [("1.1.0", 4), ("1.15.6", 1)])
def test_laions_decoder(tmp_path: Path, version: str, kernel: int) -> None:
    """`decoder/1.5B`, whose levels shrink by another convolution in the version that trained it."""
    settings = {**LAION_DECODER, **{k: tuple(v) for k, v in LAION_DECODER.items() if isinstance(v, list)}}
    with torch.device("meta"):
        unet = package().Unet(**settings, cond_on_image_embeds=True, channels_out=6)
    tensors = {f"unets.0.{name}": value for name, value in unet.state_dict().items()}
    for name in [name for name in tensors if re.fullmatch(r"unets\.0\.downs\.\d\.0\.1\.(weight|bias)", name)]:
        value = tensors.pop(name)
        shape = value.shape if value.ndim == 1 else (len(value), value.shape[1] // 4, kernel, kernel)
        if kernel == 1:
            tensors[name] = value
        else:
            tensors[name.replace(".0.1.", ".0.")] = torch.empty(shape, device="meta")
    facts = {"version": version, "decoder": {"unets": [LAION_DECODER], "image_size": 64}}
    (tmp_path / "decoder_config.json").write_text(json.dumps(facts))
    stage = loaded(tensors, "decoder", tmp_path)
    assert parameters(stage) == sum(value.numel() for value in tensors.values())
    assert 0.9e9 < parameters(stage) < 1.1e9
    config = stage.network.config
    assert (config.heads, config.head_dim, config.context_dim) == (8, 64, 512)
    assert config.normalised_values == (kernel == 1)
