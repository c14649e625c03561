"""The functions for use from Python: ``import unclip``."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import unclip
from PIL import Image
from unclip.core import precision
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.bundling import bundle_of
from unclip.core.formats.load import load_all_stages
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet
from unclip.core.pipelines import manipulate
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.generate import (
    GenerateOptions,
    default_options,
    generate,
    generate_with_embeddings,
)
from unclip.core.pipelines.inpaint import InpaintOptions
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.stages import Defaults
from unclip.nodes import host

from ..helpers.bundle import DECODED_SIZE, DIM, UPSAMPLED_SIZES, randomised, tiny_bundle, write_tiny_bundle
from ..helpers.glide import write_glide

FAST = GenerateOptions(
    prior_options=PriorOptions(steps=2, candidates=1), decode_options=DecodeOptions(steps=2)
)


def test_completion_offers_what_is_loaded_on_first_access() -> None:
    assert {"encode_text", "generate_image", "load_bundle", "save"} <= set(dir(unclip))


def test_a_caption_becomes_a_file_in_three_lines(tmp_path: Path) -> None:
    bundle = unclip.load_bundle(write_tiny_bundle(tmp_path / "tiny"))
    picture = unclip.generate_image(bundle, "a red fox", seed=3, size=UPSAMPLED_SIZES[0], options=FAST)
    (file,) = unclip.save(picture, tmp_path / "new" / "fox.png")
    assert picture.shape == (1, 3, UPSAMPLED_SIZES[0], UPSAMPLED_SIZES[0])
    assert not picture.requires_grad
    saved = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)  # [3, H, W]
    assert (saved / 255 - picture[0]).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("made_by", ["generate_image", "vary", "interpolate", "inpaint"])
def test_pictures_can_be_changed_and_learnt_from(made_by: str) -> None:
    bundle, given = tiny_bundle(), torch.rand(1, 3, DECODED_SIZE, DECODED_SIZE)
    picture = {
        "generate_image": lambda: unclip.generate_image(bundle, "a fox", size=DECODED_SIZE, options=FAST),
        "vary": lambda: unclip.vary(bundle, given, options=FAST.decode_options),
        "interpolate": lambda: unclip.interpolate(bundle, given, "a fox", frames=2, options=FAST),
        "inpaint": lambda: unclip.inpaint(
            bundle,
            given,
            torch.ones(1, 1, DECODED_SIZE, DECODED_SIZE),
            "a fox",
            options=InpaintOptions(steps=2, resamples=1),
            prior_options=FAST.prior_options,
        ),
    }[made_by]()
    weight = torch.ones(1, requires_grad=True)
    (picture * weight).sum().backward()
    assert weight.grad is not None
    picture[..., :2] = 0  # in place
    assert not picture.requires_grad


def test_a_size_may_be_two_equal_sides() -> None:
    bundle = tiny_bundle()
    pictures = [
        unclip.generate_image(bundle, "a cat", size=size, options=FAST)
        for size in (UPSAMPLED_SIZES[0], (UPSAMPLED_SIZES[0],) * 2)
    ]
    assert torch.equal(*pictures)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "images: found torch.uint8, expected floating-point"),
        (torch.full((1, 3, 8, 8), math.nan), "images: found NaN or infinite values"),
    ],
)
def test_what_would_be_saved_as_another_picture_is_refused(tmp_path: Path, images, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unclip.save(images, tmp_path / "fox.png")
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_found_by_path_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_tiny_bundle(tmp_path / "tiny")
    assert unclip.load_bundle("~/tiny").decoder is not None
    monkeypatch.setattr(unclip.core.api, "_EMBEDDED", tmp_path)
    write_tiny_bundle(tmp_path / "mini")
    assert unclip.load_bundle(Path("mini")).decoder is not None


def test_pictures_are_those_of_the_stages_with_their_own_seeds() -> None:
    bundle = tiny_bundle()
    pictures = unclip.generate_image(bundle, ["a cat", "a dog"], seed=5, size=DECODED_SIZE, options=FAST)
    second = unclip.generate_image(bundle, "a dog", seed=6, size=DECODED_SIZE, options=FAST)
    torch.testing.assert_close(pictures[1:], second, rtol=0, atol=1e-5)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-2
    torch.testing.assert_close(pictures, generate(bundle, ["a cat", "a dog"], seed=5, options=FAST))


def test_an_upsampler_that_reads_captions_gets_them() -> None:
    bundle, generator = tiny_bundle(upsamplers=1), torch.Generator().manual_seed(0)
    (plain,) = bundle.upsamplers
    config = replace(plain.network.config, conditioning=ConditioningConfig(text_pooled_dim=DIM))
    reads = replace(plain, network=randomised(UNet(config), generator), space=bundle.clip.space)
    bundle = replace(bundle, upsamplers=(reads,))

    def pictures(caption: str) -> torch.Tensor:
        # Without a guided decoder and a prior, so that the small picture is the same for both captions.
        embedding = encode_text(bundle.clip, [""]).pooled
        options = replace(FAST, upsamplers=1, decode_options=DecodeOptions(steps=1, guidance_scale=1))
        known = Embedding(embedding, bundle.clip.space)
        return generate_with_embeddings(bundle, [caption], seed=0, options=options, embeddings=known)[0]

    assert (pictures("a cat") - pictures("a dog")).abs().max() > 1e-3


def test_a_size_that_no_stage_makes_is_named() -> None:
    sizes = ", ".join(map(str, (DECODED_SIZE, *UPSAMPLED_SIZES)))
    with pytest.raises(ValueError, match=rf"^size is 100; bundle .* makes pictures of {sizes} pixels"):
        unclip.generate_image(tiny_bundle(), "a cat", size=100, options=GenerateOptions())


def test_several_pictures_are_numbered(tmp_path: Path) -> None:
    files = unclip.save(torch.zeros(2, 3, 4, 4), tmp_path / "fox.png")
    assert [file.name for file in files] == ["fox-1.png", "fox-2.png"]
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize(
    ("images", "name", "message"),
    [
        (torch.zeros(3, 4, 4), "fox.png", r"^images: found shape \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), "fox.png", r"^images: found shape \(0, 3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), "fox.jpg", r"^path: found .*fox\.jpg, expected a name that ends in \.png"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, images, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unclip.save(images, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fast", [True, False])
def test_the_embedded_bundle_is_the_default_in_what_is_fast_here(monkeypatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: fast)
    bundle = unclip.load_bundle()
    assert bundle.name == "mini" and len(bundle.stages) == 6
    assert bundle.precision == ("bf16" if fast else "fp32")
    weights = [weight for stage in bundle.stages for weight in stage.network.parameters()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16 if fast else torch.float32}
    # The rule of nodes and command line.
    monkeypatch.setattr(host, "compute_device", lambda: torch.device("cpu"))
    assert {host.choose_dtype("auto")} == {weight.dtype for weight in weights}


def test_the_type_of_a_bundle_may_be_named(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny")
    assert unclip.load_bundle(folder, dtype=torch.float16).precision == "fp16"
    bundle = unclip.load_bundle(folder, dtype=torch.float32)
    assert bundle.precision == "fp32"
    assert replace(bundle, prior=None, ar_prior=None).stages == (
        bundle.clip,
        bundle.decoder,
        *bundle.upsamplers,
    )


def test_what_is_not_there_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'paint'"):
        unclip.paint  # noqa: B018


# --- manipulations ---


def test_a_picture_is_varied() -> None:
    bundle, image = tiny_bundle(), torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    found = unclip.vary(bundle, image, seed=4, count=2, options=DecodeOptions(steps=2))
    assert found.shape == (2, 3, DECODED_SIZE, DECODED_SIZE)
    second = unclip.vary(bundle, image, seed=5, options=DecodeOptions(steps=2))
    torch.testing.assert_close(found[1:], second, rtol=0, atol=1e-5)
    other = unclip.vary(bundle, 1 - image, seed=5, options=DecodeOptions(steps=2))
    assert (other - second).abs().max() > 1e-3


def test_a_caption_becomes_a_picture_step_by_step() -> None:
    bundle, image = tiny_bundle(), torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    frames = unclip.interpolate(bundle, "a red fox", image, frames=3, seed=1, options=FAST)
    assert frames.shape == (3, 3, DECODED_SIZE, DECODED_SIZE)
    turned = unclip.interpolate(bundle, image, "a red fox", frames=3, seed=1, options=FAST)
    torch.testing.assert_close(frames.flip(0), turned, rtol=0, atol=1e-4)
    assert (frames[1] - frames[0]).abs().max() > 1e-3


def test_frames_between_two_equal_pictures_are_equal_whatever_sampler_the_bundle_asks_for() -> None:
    """Karlo and Kandinsky ask for ddpm, whose steps have noise of their own in every frame."""
    bundle = tiny_bundle()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    asks = replace(bundle, defaults=Defaults({"decoder": {"sampler": "ddpm", "steps": 4}}))
    frames = unclip.interpolate(asks, image, image, frames=3)
    assert torch.allclose(frames[0], frames[2], atol=1e-5) and torch.allclose(frames[0], frames[1], atol=1e-5)
    named = GenerateOptions(decode_options=DecodeOptions(steps=4, sampler="ddpm"))
    frames = unclip.interpolate(asks, image, image, frames=3, options=named)
    assert (frames[0] - frames[1]).abs().max() > 0.01, "who names it gets it"


def test_where_nothing_may_change_the_picture_comes_back() -> None:
    image = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, 40, 30)
    mask[..., 10:30, 5:25] = 1
    for strength in (0.0, 0.03):
        options = InpaintOptions(steps=4, strength=strength)
        assert torch.equal(unclip.inpaint(tiny_bundle(), image, mask, "a fox", options=options), image)


def test_what_a_mask_covers_is_painted_anew() -> None:
    bundle, image = tiny_bundle(), torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., 10:30, 20:40] = 1
    options = InpaintOptions(steps=2, resamples=1)
    prior = PriorOptions(steps=2, candidates=1)
    found = unclip.inpaint(bundle, image, mask, "a fox", seed=1, options=options, prior_options=prior)
    outside = (mask == 0).expand_as(image)
    assert torch.equal(found[outside], image[outside])
    assert (found - image)[~outside].abs().max() > 1e-2


@pytest.mark.parametrize("lacks", ["clip", "decoder"])
def test_a_stage_that_a_manipulation_lacks_is_named(lacks: str) -> None:
    bundle = replace(tiny_bundle(), **{lacks: None})
    with pytest.raises(ValueError, match=f"has no {'CLIP model' if lacks == 'clip' else lacks}"):
        unclip.vary(bundle, torch.zeros(1, 3, 8, 8))


def test_the_guidance_that_a_bundle_asks_for_holds_for_inpainting(monkeypatch) -> None:
    image, mask = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    used = []

    def paint(*_, options: InpaintOptions, **__) -> torch.Tensor:
        used.append(options)
        return image

    monkeypatch.setattr(manipulate, "paint_masked", paint)
    decoder = {"guidance_scale": 4.0, "guidance": "apg", "sampler": "ddpm", "steps": 50}
    # What needs a second decoder is for whole pictures only.
    for asked in (decoder, {"guidance_scale": 4.0, "guidance": "autoguidance"}):
        bundle = replace(tiny_bundle(upsamplers=0), defaults=Defaults({"decoder": asked}))
        unclip.inpaint(bundle, image, mask, "a fox", prior_options=FAST.prior_options)
    own = InpaintOptions(steps=3)
    unclip.inpaint(bundle, image, mask, "a fox", options=own, prior_options=FAST.prior_options)
    asked_for = InpaintOptions(guidance_scale=4.0)
    assert used == [replace(asked_for, guidance="apg"), asked_for, own]


def test_the_edge_of_what_is_inpainted_is_softened_once(monkeypatch) -> None:
    used = []

    def paint(*_, options: InpaintOptions, **__) -> torch.Tensor:
        used.append(options)
        return torch.ones(1, 3, 8, 8)

    monkeypatch.setattr(manipulate, "paint_masked", paint)
    image, mask = torch.zeros(1, 3, 24, 24), torch.zeros(1, 1, 24, 24)
    mask[..., 12:] = 1
    options = InpaintOptions(steps=2, feather=2)
    found = unclip.inpaint(
        tiny_bundle(), image, mask, "a fox", options=options, prior_options=FAST.prior_options
    )
    # 2 pixels of 8 are 6 of 24, over which it rises evenly.
    expected = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7]) / 7
    torch.testing.assert_close(found[0, 0, 12, 11:], expected)
    assert used == [replace(options, feather=0)]


@pytest.mark.parametrize("kind", ["base", "base-inpaint"])
def test_a_decoder_that_paints_captions_alone_needs_no_prior(tmp_path: Path, kind: str) -> None:
    bundle = bundle_of("glide", load_all_stages(write_glide(tmp_path, kind)))
    fast = GenerateOptions(decode_options=DecodeOptions(steps=2, guidance_scale=3.0))
    cat, dog = (unclip.generate_image(bundle, caption, options=fast) for caption in ("a cat", "a dog"))
    assert (cat - dog).abs().max() > 1e-3
    image, mask = torch.zeros_like(cat), torch.zeros_like(cat[:, :1])
    mask[..., :8] = 1
    painted = unclip.inpaint(bundle, image, mask, "a cat", options=InpaintOptions(steps=1, resamples=1))
    assert torch.equal(painted[..., 8:], image[..., 8:]) and painted[..., :8].abs().max() > 0.1
    with pytest.raises(ValueError, match=r"^bundle 'glide' paints captions alone"):
        unclip.interpolate(bundle, "a cat", "a dog")


def test_a_bundle_with_an_autoregressive_prior_alone_paints_by_it() -> None:
    whole = tiny_bundle(upsamplers=0)
    asked = Defaults({"decoder": {"steps": 2}, "ar_prior": {"candidates": 1}})
    bundle = replace(whole, prior=None, defaults=asked)
    options = replace(default_options(replace(whole, defaults=asked)), prior="autoregressive")
    assert torch.equal(
        unclip.generate_image(bundle, "a cat"), unclip.generate_image(whole, "a cat", options=options)
    )


def test_captions_may_come_one_by_one() -> None:
    clip = tiny_bundle(upsamplers=0).clip
    found = unclip.encode_text(clip, (caption for caption in ("a fox", "a cat")))
    assert torch.equal(found.pooled, unclip.encode_text(clip, ["a fox", "a cat"]).pooled)


def test_a_wave_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert unclip.save(torch.zeros(1, 3, 4, 4), "~/a/x.png") == [tmp_path / "a" / "x.png"]
    bundle = tiny_bundle(upsamplers=0)
    (tmp_path / "no.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "no.safetensors"))):
        unclip.load_lora(bundle, "~/no.safetensors")
    with pytest.raises(ValueError, match="~nobody-here/no"):
        unclip.load_lora(bundle, "~nobody-here/no.safetensors")
