"""What pipelines make of a decoder that paints latents: sizes, previews, inversion, interpolation, memory."""

from __future__ import annotations

import logging
from copy import copy, deepcopy
from dataclasses import replace

import pytest
import torch
import unclip
from torch import Tensor
from unclip.core.diffusion.samplers import SamplerStep
from unclip.core.embeddings.arithmetic import interpolate
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.load import load_any_bundle
from unclip.core.pipelines import canvas
from unclip.core.pipelines.canvas import picture_size, to_network, to_pictures
from unclip.core.pipelines.conditioning import null_embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.generate import GenerateOptions
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.pipelines.invert import invert
from unclip.core.pipelines.memory import decode_memory
from unclip.core.pipelines.noise import draw_starting_noise, interpolate_noise
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.pipelines.sweep import sweep_guidance

from ...helpers import kandinsky_files as files
from ...helpers import karlo
from ...helpers.unet import difference, random_tensor

FAST = DecodeOptions(steps=3, guidance_scale=1.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("kandinsky22")
    karlo.save_as_published(karlo.tiny_kandinsky_prior(), root / "prior")
    files.tiny_22().save_pretrained(root / "decoder")
    return load_any_bundle(root)


@pytest.fixture(scope="module")
def decoder(bundle):
    return bundle.decoder


@pytest.fixture(scope="module")
def alone(decoder):
    """As it is without the CLIP model: what stands for no embedding is not known."""
    network = decoder.network
    conditioning = replace(network.config.conditioning, learned_null=False)
    twin, conditioner = copy(network), copy(network.conditioner)
    twin.config = replace(network.config, conditioning=conditioning)
    conditioner.config = conditioning
    conditioner._parameters = {k: v for k, v in conditioner._parameters.items() if k != "null_clip"}
    twin._modules = network._modules | {"conditioner": conditioner}
    return replace(decoder, network=twin)


def embedding(decoder, seed: int = 0, rows: int = 1) -> Embedding:
    return Embedding(random_tensor(seed, rows, karlo.DIM), decoder.space)


def photo(height: int, width: int) -> Tensor:
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return torch.stack([rows + 0 * columns, columns + 0 * rows, rows * columns])[None]


# --- sizes ---


def test_sizes_of_kandinsky22_are_rounded_up_with_a_word_about_it(decoder, caplog) -> None:
    assert picture_size(decoder) == (128, 128)  # of the tiny one
    with caplog.at_level(logging.WARNING):
        assert picture_size(decoder, 200, 129) == (144, 208)  # multiples of 16, 64 of the real one
    assert "200×129 is rounded up to 208×144" in caplog.text
    caplog.clear()
    assert picture_size(decoder, 208, 144, quiet=False) == (144, 208)
    assert picture_size(decoder, 200, 0, quiet=True) == (128, 208)
    assert caplog.text == ""
    with pytest.raises(ValueError, match="width is -1"):
        picture_size(decoder, -1, 0)
    assert picture_size(decoder, 2048, 0) == (128, 2048)
    with pytest.raises(ValueError, match=r"found 2049×128, but this decoder learned 128×128 .* at most 2048"):
        picture_size(decoder, 2049, 0)


def test_kandinsky22_keeps_the_proportions_of_a_picture(decoder) -> None:
    assert picture_size(decoder, like=photo(300, 600)) == (96, 176)
    image = photo(300, 600)
    options = replace(FAST, strength=0.7)
    assert decode(decoder, embedding(decoder), seed=0, image=image, options=options).shape[2:] == (96, 176)


def test_a_picture_of_kandinsky22_in_a_batch_is_what_it_is_alone(decoder) -> None:
    options = replace(FAST, sampler="ddpm", width=128, height=96)
    both = decode(decoder, embedding(decoder, 0, 2), seed=7, options=options)
    second = Embedding(embedding(decoder, 0, 2).vectors[1:], decoder.space)
    assert both.shape == (2, 3, 96, 128)
    assert difference(both[1:], decode(decoder, second, seed=8, options=options)) < 1e-4


def test_noise_of_kandinsky22_brings_its_size_along(decoder) -> None:
    noise = draw_starting_noise(decoder, seed=3, width=192, height=128)
    assert noise.values.shape == (1, 4, 16, 24)
    found = decode(decoder, embedding(decoder), seed=3, noise=noise.values, options=FAST)
    expected = decode(decoder, embedding(decoder), seed=3, options=replace(FAST, width=192, height=128))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="192×128 pixels"):
        interpolate_noise(draw_starting_noise(decoder, seed=3), noise, 3)
    with pytest.raises(ValueError, match=r"expected \[batch, 4, 8, 8\]"):
        decode(
            decoder,
            embedding(decoder),
            seed=3,
            noise=noise.values,
            options=replace(FAST, width=64, height=64),
        )


# --- what stands for no embedding ---


def test_guidance_of_kandinsky22_needs_the_embedding_of_an_all_zero_picture(bundle, decoder, alone) -> None:
    guided = replace(FAST, guidance_scale=4.0)
    z = embedding(decoder)
    expected = decode(decoder, z, seed=0, options=guided)
    with pytest.raises(ValueError, match="guidance needs the CLIP embedding of an all-zero picture"):
        decode(alone, z, seed=0, options=guided)
    with pytest.raises(ValueError, match="all-zero picture"):
        null_embedding(alone)
    wired = null_embedding(alone, clip=bundle.clip)
    found = decode(alone, z, seed=0, options=guided, negative_embedding=wired)
    assert difference(found, expected) < 1e-4
    zeros = Embedding(torch.zeros(1, karlo.DIM), decoder.space)
    assert difference(decode(alone, z, seed=0, options=guided, negative_embedding=zeros), expected) > 1e-2
    assert decode(alone, z, seed=0, options=FAST).shape == (1, 3, 128, 128)


# --- the manipulations of the paper ---


def test_an_inverted_picture_of_kandinsky22_is_decoded_again(decoder) -> None:
    """As close as the autoencoder itself comes to it. (A random network as it is turns round too sharply.)"""
    network = deepcopy(decoder.network)
    network.conv_out.weight.mul_(0.05)
    unclamped = replace(decoder, network=network, diffusion=replace(decoder.diffusion, clip_x0=None))
    image, z = photo(128, 192), embedding(decoder)
    size = {"width": 192, "height": 128}
    noise = invert(unclamped, image, z, steps=20, guidance_scale=1.0, refinements=12, **size)
    assert noise.shape == (1, 4, 16, 24)
    options = DecodeOptions(steps=20, guidance_scale=1.0)
    found = decode(unclamped, z, seed=0, noise=noise, options=options)
    reconstructed = to_pictures(decoder, to_network(decoder, image))
    assert (found - reconstructed).abs().mean() < 0.01
    other = decode(unclamped, embedding(decoder, 5), seed=0, noise=noise, options=options)
    assert (other - reconstructed).abs().mean() > 0.05


def test_the_ends_of_an_interpolation_of_kandinsky22_are_the_pictures_of_its_sources(decoder) -> None:
    first, second = embedding(decoder, 0), embedding(decoder, 1)
    noise = draw_starting_noise(decoder, seed=4, width=128, height=64).values
    frames = decode(decoder, interpolate(first, second, 3), seed=0, noise=noise, options=FAST)
    for index, source in ((0, first), (2, second)):
        alone = decode(decoder, source, seed=0, noise=noise, options=FAST)
        assert difference(frames[index : index + 1], alone) < 1e-3
    assert difference(frames[1], frames[0]) > 1e-2


def test_kandinsky22_without_inpainting_channels_keeps_what_is_not_masked(decoder) -> None:
    image, mask = photo(120, 200), torch.zeros(1, 1, 120, 200)
    mask[..., 30:70, 60:120] = 1
    options = InpaintOptions(steps=3, guidance_scale=1.0, resamples=1, width=208, height=128)
    found = inpaint(decoder, image, mask, embedding(decoder), seed=0, options=options)
    resized = canvas.resize(image, (128, 208))
    outside = torch.nn.functional.adaptive_max_pool2d(mask, (128, 208)).expand_as(found) == 0
    assert torch.equal(found[outside], resized[outside])
    assert difference(found, resized) > 1e-2
    gentle = inpaint(decoder, image, mask, embedding(decoder), seed=0, options=replace(options, strength=0.4))
    assert (gentle - resized).abs().mean() < (found - resized).abs().mean()
    kept = inpaint(decoder, image, mask, embedding(decoder), seed=0, options=replace(options, strength=0.0))
    assert torch.equal(kept, resized)


def test_a_sweep_of_kandinsky22_is_its_decodes(decoder) -> None:
    options = replace(FAST, width=64, height=64)
    found = sweep_guidance(decoder, embedding(decoder), scales=[1.0, 4.0], seed=2, options=options)
    assert found.shape == (1, 2, 3, 64, 64)
    guided = replace(options, guidance_scale=4.0)
    assert torch.equal(found[:, 1], decode(decoder, embedding(decoder), seed=2, options=guided))


def test_no_strength_of_kandinsky22_gives_the_autoencoders_picture(decoder) -> None:
    image = photo(128, 128)
    options = replace(FAST, strength=0.0, width=128, height=128)
    found = decode(decoder, embedding(decoder), seed=0, image=image, options=options)
    assert torch.equal(found, to_pictures(decoder, to_network(decoder, image)))


# --- previews, tiles, memory ---


def test_previews_of_kandinsky22_are_small_pictures_in_its_colours(decoder) -> None:
    steps: list[SamplerStep] = []
    options = replace(FAST, width=192, height=128)
    picture = decode(decoder, embedding(decoder), seed=0, options=options, callback=steps.append)
    assert [step.index for step in steps] == [0, 1, 2]
    last = steps[-1].x0
    assert last.shape == (1, 3, 16, 24)
    small = torch.nn.functional.avg_pool2d(2 * picture - 1, 8)
    assert torch.corrcoef(torch.stack([last.flatten(), small.flatten()]))[0, 1] > 0.3
    assert last.abs().max() <= 1


@pytest.mark.parametrize("free", [1, 30_000_000, None])
def test_kandinsky22_works_by_tiles_where_memory_is_short(decoder, monkeypatch, free) -> None:
    options = replace(FAST, width=384, height=256)
    expected = decode(decoder, embedding(decoder), seed=0, options=options)
    sizes: list[int] = []
    original = canvas.decode_in_tiles

    def spied(movq, latent: Tensor, tile: int) -> Tensor:
        sizes.append(tile)
        return original(movq, latent, tile)

    monkeypatch.setattr(canvas, "decode_in_tiles", spied)
    monkeypatch.setattr(canvas, "free_memory", lambda device: free)
    found = decode(decoder, embedding(decoder), seed=0, options=options)
    assert difference(found, expected) < 1e-3
    assert sizes == {1: [16], 30_000_000: [24], None: []}[free]


def test_memory_of_kandinsky22_counts_its_autoencoder(decoder) -> None:
    small = decode_memory(decoder, 1.0, 1, size=(128, 128))
    large = decode_memory(decoder, 1.0, 1, size=(256, 256))
    assert large > 3 * small - 2 * canvas.autoencoder_memory(decoder.autoencoder.network, 16, 16)
    assert small > decode_memory(replace(decoder, autoencoder=None), 1.0, 1, size=(16, 16))


# --- from Python ---


def test_kandinsky22_in_the_lines_of_the_readme(tmp_path) -> None:
    karlo.save_as_published(karlo.tiny_kandinsky_prior(), tmp_path / "prior")
    files.tiny_22().save_pretrained(tmp_path / "decoder")
    loaded = unclip.load_bundle(tmp_path / "prior", tmp_path / "decoder", dtype=torch.float32)
    quick = GenerateOptions(
        prior_options=PriorOptions(steps=2, candidates=1), decode_options=DecodeOptions(steps=2)
    )
    found = unclip.generate_image(loaded, "a red fox", seed=1, size=(192, 128), options=quick)
    assert found.shape == (1, 3, 128, 192)
    assert unclip.generate_image(loaded, "a red fox", options=quick).shape == (1, 3, 128, 128)
    varied = unclip.vary(loaded, photo(64, 64), size=64, options=quick.decode_options)
    assert varied.shape == (1, 3, 64, 64)
    frames = unclip.interpolate(loaded, "a red fox", photo(64, 64), frames=3, size=64, options=quick)
    assert frames.shape == (3, 3, 64, 64)
