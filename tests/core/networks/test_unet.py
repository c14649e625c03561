"""The U-Net: what its config expresses, how it trains, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unclip.core.config import config_from_dict, config_to_dict
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_config import UNetConfig

from ...helpers.unet import (
    GLIDE_BASE,
    GLIDE_UPSAMPLER,
    KARLO_DECODER,
    KARLO_UPSAMPLER,
    PAPER_DECODER,
    PAPER_UPSAMPLER_256,
    PAPER_UPSAMPLER_1024,
    difference,
    random_tensor,
    randomised,
)
from ...helpers.unet_small import DECODER, ROWS, TEXT, UPSAMPLER, Z_I, T, X


@pytest.fixture(scope="module")
def network() -> UNet:
    return randomised(UNet(DECODER)).requires_grad_(False)


def parameters(config: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(config).parameters())


# --- what the config expresses ---


def transformer_parameters(width: int, layers: int) -> int:
    """Attention (4 W²) and an MLP four times as wide (8 W²), with biases and two LayerNorms."""
    return layers * (12 * width**2 + 13 * width)


@pytest.mark.parametrize(
    ("config", "billions"), [(PAPER_UPSAMPLER_256, 0.7), (PAPER_UPSAMPLER_1024, 0.3), (KARLO_UPSAMPLER, 0.7)]
)
def test_upsamplers_have_the_published_size(config: UNetConfig, billions: float) -> None:
    assert round(parameters(config) / 1e9, 1) == billions


def test_the_papers_decoder_has_the_published_size_with_its_text_encoder() -> None:
    assert round((parameters(PAPER_DECODER) + transformer_parameters(2048, 24)) / 1e9, 1) == 3.5


def test_karlos_networks_have_the_published_size() -> None:
    assert round(parameters(KARLO_DECODER) / 1e6) == 893
    assert round(parameters(KARLO_UPSAMPLER) / 1e6) == 692


@pytest.mark.parametrize(("config", "published"), [(GLIDE_BASE, 385_030_726), (GLIDE_UPSAMPLER, 398_361_286)])
def test_glides_networks_have_the_published_size_with_their_text_encoder(
    config: UNetConfig, published: int
) -> None:
    """As its notebooks print them. The text encoder has 50257 tokens, 128 positions and as many paddings."""
    text = transformer_parameters(512, 16) + 512 * (50257 + 2 * 128) + 2 * 512
    assert parameters(config) + text == published


@pytest.mark.parametrize("config", [KARLO_DECODER, GLIDE_UPSAMPLER, UPSAMPLER])
def test_a_config_survives_its_file_form(config: UNetConfig) -> None:
    assert config_from_dict(UNetConfig, config_to_dict(config)) == config


def test_pixel_unshuffling_is_a_network_over_unshuffled_pixels() -> None:
    inner = replace(
        UPSAMPLER, image_size=16, patch_size=1, in_channels=48, concat_channels=48, out_channels=48
    )
    outer, inner = (randomised(UNet(config)).requires_grad_(False) for config in (UPSAMPLER, inner))
    x, low = random_tensor(1, 2, 3, 64, 64), random_tensor(2, 2, 3, 64, 64)
    t, level = torch.tensor([3, 700]), torch.tensor([0.1, 0.4])
    found = outer(x, t, concat=low, noise_level=level)
    unshuffled = inner(F.pixel_unshuffle(x, 4), t, concat=F.pixel_unshuffle(low, 4), noise_level=level)
    assert difference(found, F.pixel_shuffle(unshuffled, 4)) < 1e-6


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 96)])
def test_without_attention_a_network_runs_at_any_size(size: tuple[int, int]) -> None:
    upsampler = randomised(UNet(UPSAMPLER)).requires_grad_(False)
    x, low = random_tensor(1, 1, 3, *size), random_tensor(2, 1, 3, *size)
    found = upsampler(x, torch.tensor([5]), concat=low)
    assert found.shape == (1, 3, *size)
    assert found.isfinite().all()


def test_the_noise_level_is_told_and_none_means_no_noise() -> None:
    upsampler = randomised(UNet(UPSAMPLER)).requires_grad_(False)
    x, low, t = random_tensor(1, 2, 3, 32, 32), random_tensor(2, 2, 3, 32, 32), torch.tensor([5, 5])
    silent = upsampler(x, t, concat=low)
    assert torch.equal(silent, upsampler(x, t, concat=low, noise_level=torch.zeros(2)))
    told = upsampler(x, t, concat=low, noise_level=torch.tensor([0.0, 0.3]))
    assert difference(told[:1], silent[:1]) < 1e-6
    assert difference(told[1:], silent[1:]) > 1e-3


def test_a_residual_network_corrects_its_condition() -> None:
    config = replace(UPSAMPLER, concat_channels=4)
    plain, residual = (
        randomised(UNet(replace(config, residual=on))).requires_grad_(False) for on in (False, True)
    )
    x, concat, t = random_tensor(1, 2, 3, 32, 32), random_tensor(2, 2, 4, 32, 32), torch.tensor([5, 900])
    expected = plain(x, t, concat=concat) + concat[:, :3]
    assert torch.equal(residual(x, t, concat=concat), expected)
    assert torch.equal(UNet(replace(config, residual=True))(x, t, concat=concat), concat[:, :3])


# --- training ---


def test_a_fresh_network_puts_out_zero() -> None:
    network = UNet(DECODER)
    assert not network(X, T, network.condition(clip_embedding=Z_I, **TEXT)).any()


@pytest.mark.parametrize("config", [DECODER, UPSAMPLER], ids=["decoder", "upsampler"])
def test_gradients_reach_every_parameter(config: UNetConfig) -> None:
    network = randomised(UNet(config))
    keep = torch.tensor([True, False, True])
    condition = network.condition(clip_embedding=Z_I, keep_clip=keep, **TEXT)
    options: dict[str, Tensor] = {}
    if config.concat_channels:
        options = {"concat": X + 1, "noise_level": torch.tensor([0.1, 0.2, 0.3])}
    network(X, T, condition, **options).square().mean().backward()
    silent = [
        name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()
    ]
    assert silent == []


# --- errors ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"res_blocks": (1,)}, "res_blocks has 1 levels and channel_mult 2: both need one number per level"),
        ({"channels": 40}, "channels is 40, expected a multiple of 32"),
        ({"image_size": 17}, "image_size 17 is not a multiple of 2"),
        ({"attention": (8, 5)}, "attention names the grids 5, but this network has the grids 16, 8"),
        ({"attention": ()}, "conditioning has context tokens, but without attention nothing reads them"),
        ({"residual": True}, "residual needs at least 3 concat_channels, found 0"),
        ({"head_dim": 48}, "64 channels cannot be split into attention heads of 48"),
    ],
)
def test_a_wrong_shape_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        UNet(replace(DECODER, **change))


def test_wrong_inputs_are_named(network: UNet) -> None:
    condition = network.condition(clip_embedding=Z_I, **TEXT)
    upsampler = UNet(UPSAMPLER)
    low = torch.zeros(ROWS, 3, 16, 16)
    for message, run in {
        "x has shape [3, 3, 16, 15], expected [batch, 3, height, width] with height and width multiples": (
            lambda: network(X[..., :15], T, condition)
        ),
        "x has shape [3, 1, 16, 16], expected [batch, 3": lambda: network(X[:, :1], T, condition),
        "this network needs a condition from its condition()": lambda: network(X, T),
        "the condition has 3 rows and x has 2": lambda: network(X[:2], T[:2], condition),
        "concat has shape [3, 3, 16, 16], expected None": lambda: network(X, T, condition, concat=low),
        "concat has shape None, expected [3, 3, 16, 16] beside x [3, 3, 16, 16]": lambda: upsampler(X, T),
        "concat has shape [3, 3, 16, 8], expected [3, 3, 16, 16]": (
            lambda: upsampler(X, T, concat=low[..., :8])
        ),
        "this network takes no condition from": lambda: upsampler(X, T, condition, concat=low),
    }.items():
        with pytest.raises(ValueError, match="^" + re.escape("U-Net: " + message)):
            run()
