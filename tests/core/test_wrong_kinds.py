"""What Python hands over by mistake: fractions for counts, things of another kind, pictures with NaN."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import unclip
from unclip.core.embeddings.arithmetic import interpolate
from unclip.core.embeddings.pca import fit_pca
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines import generate as generating
from unclip.core.pipelines import manipulate
from unclip.core.pipelines.ar_prior import sample_autoregressive_prior
from unclip.core.pipelines.composite import composite
from unclip.core.pipelines.conditioning import null_embedding, zero_embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.generate import GenerateOptions, default_options
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.pipelines.inpaint_whole import inpaint_whole
from unclip.core.pipelines.invert import invert
from unclip.core.pipelines.lora import with_lora
from unclip.core.pipelines.noise import draw_starting_noise, interpolate_noise
from unclip.core.pipelines.operator import apply_operator
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior, sample_negative_embedding
from unclip.core.pipelines.regions import Region
from unclip.core.pipelines.upsample import upsample
from unclip.core.pipelines.zero_shot import zero_shot
from unclip.core.stages import ClipStage, DecoderStage, PriorStage, UpsamplerStage

from ..helpers.bundle import DECODED_SIZE, DIM, of_one_size, tiny_bundle

FAST = DecodeOptions(steps=1, guidance_scale=1.0)
BUNDLE = tiny_bundle(upsamplers=0)
SPACE = BUNDLE.clip.space
PICTURE = torch.rand(1, 3, DECODED_SIZE, DECODED_SIZE, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(1, 1, DECODED_SIZE, DECODED_SIZE)


def embeddings(count: int) -> Embedding:
    return Embedding(torch.randn(count, DIM, generator=torch.Generator().manual_seed(1)), SPACE)


def noise(batch_size: int = 1):
    return draw_starting_noise(BUNDLE.decoder, seed=0, batch_size=batch_size)


def painted(**given):
    inputs = {"embedding": embeddings(1), "text": encode_text(BUNDLE.clip, ["a"]), "options": FAST, "seed": 0}
    return decode(BUNDLE.decoder, **{**inputs, **given})


@pytest.mark.parametrize("wrong", [3.0, True, "3"])
@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("frames", lambda n: interpolate(embeddings(1), embeddings(1), n)),
        ("frames", lambda n: unclip.interpolate(BUNDLE, PICTURE, PICTURE, frames=n)),
        ("frames", lambda n: interpolate_noise(noise(), noise(), n)),
        ("components", lambda n: fit_pca(embeddings(9), components=n)),
        ("k", lambda n: fit_pca(embeddings(9)).reconstruct(torch.zeros(1, 4), n)),
        ("batch_size", lambda n: painted(batch_size=n)),
        ("batch_size", noise),
        ("width", lambda n: draw_starting_noise(BUNDLE.decoder, seed=0, width=n)),
        ("feather", lambda n: composite(PICTURE, PICTURE, MASK, n)),
        ("count", lambda n: unclip.vary(BUNDLE, PICTURE, count=n)),
        ("batch_size", lambda n: GenerateOptions(batch_size=n)),
        ("upsamplers", lambda n: GenerateOptions(upsamplers=n)),
        ("steps", lambda n: DecodeOptions(steps=n)),
        ("keep", lambda n: sample_diffusion_prior(BUNDLE.prior, None, seed=0, keep=n)),
    ],
)
def test_a_count_is_a_whole_number(name: str, run: Callable[[object], object], wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is {wrong!r}; expected a whole number"):
        run(wrong)


def test_whole_numbers_of_numpy_count() -> None:
    two = np.int64(2)
    assert len(interpolate(embeddings(1), embeddings(1), two)) == 2
    assert len(fit_pca(embeddings(9), components=two)) == 2
    assert len(painted(batch_size=two)) == 2
    text = encode_text(BUNDLE.clip, ["a"])
    fast = PriorOptions(steps=1, candidates=1)
    assert len(sample_negative_embedding(BUNDLE.prior, text, seed=np.int64(2**62), options=fast)) == 1


@pytest.mark.parametrize("wrong", ["1.5", None, True])
def test_an_option_that_is_no_number_is_named(wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"^guidance_scale is {wrong!r}; expected a number"):
        DecodeOptions(guidance_scale=wrong)


@pytest.mark.parametrize("size", [3.0, "64", (64, 64, 64), (64,), (64, 6.5), True])
def test_a_size_is_a_side_or_two(size: object) -> None:
    for make in (
        lambda: unclip.vary(BUNDLE, PICTURE, size=size),
        lambda: unclip.generate_image(BUNDLE, "a", size=size),
    ):
        with pytest.raises(ValueError, match=r"^size is .*; expected a side in pixels"):
            make()


def test_a_size_that_the_decoder_does_not_paint_is_named_as_it_was_given() -> None:
    side, fixed = DECODED_SIZE, of_one_size()
    for make in (
        lambda: unclip.vary(fixed, PICTURE, size=2 * side),
        lambda: unclip.interpolate(fixed, PICTURE, PICTURE, size=2 * side),
    ):
        found, own = f"{2 * side}×{2 * side}", f"{side}×{side}"
        with pytest.raises(
            ValueError, match=f"^size: found {found}, .* paints {own} pixels only; leave it out"
        ):
            make()
    for make in (
        lambda: unclip.vary(BUNDLE, PICTURE, size=0),
        lambda: unclip.generate_image(BUNDLE, "a", size=(side, 0)),
    ):
        with pytest.raises(ValueError, match=r"^size is 0; expected at least 1"):
            make()


def test_a_size_is_refused_before_a_prior_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manipulate, "sample_prior", None)
    monkeypatch.setattr(generating, "sample_prior", None)
    fixed, wide = of_one_size(), replace(FAST, width=2 * DECODED_SIZE)
    for make in (
        lambda: unclip.interpolate(fixed, "a", "b", options=GenerateOptions(decode_options=wide)),
        lambda: unclip.inpaint(fixed, PICTURE, MASK, "a", options=InpaintOptions(width=2 * DECODED_SIZE)),
        lambda: unclip.generate_image(fixed, "a", options=GenerateOptions(decode_options=wide)),
    ):
        with pytest.raises(ValueError, match=r"^width and height: found .* pixels only; set both to 0"):
            make()


@pytest.mark.parametrize("interval", [0.2, None, (0.2,), (0.1, 0.2, 0.3), ("0", "1"), (0.5, 0.2), (0, 1.5)])
def test_an_interval_is_two_numbers(interval: object) -> None:
    message = f"guidance_interval is {interval!r}; expected a range within 0 to 1, such as (0.2, 0.8)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DecodeOptions(guidance_interval=interval)


def test_a_size_may_be_of_numpy() -> None:
    side = np.int64(DECODED_SIZE)
    for size in (side, (side, side), [side, side]):
        assert unclip.vary(BUNDLE, PICTURE, size=size, options=FAST).shape == PICTURE.shape
        options = GenerateOptions(prior="none", decode_options=FAST)
        assert unclip.generate_image(BUNDLE, "a", size=size, options=options).shape == PICTURE.shape


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: painted(noise=noise()), r"^noise: found StartingNoise, expected the tensor .*\.values"),
        (lambda: painted(embedding=torch.zeros(1, DIM)), "^embedding: found Tensor, expected an Embedding"),
        (lambda: Embedding(np.zeros((1, DIM)), SPACE), "^vectors: found ndarray, expected a tensor"),
        (lambda: painted(text="a cat"), "^text: found str, expected TextFeatures"),
        (lambda: painted(negative_text=["a cat"]), "^negative_text: found list, expected TextFeatures"),
        (lambda: painted(image=np.zeros((1, 3, 8, 8))), "^image: found ndarray, expected a tensor"),
        (lambda: painted(hint="depth.png"), "^hint: found str, expected a tensor"),
        (lambda: unclip.generate_image("mini", "a"), "^bundle: found str, expected a bundle, as load_bundle"),
        (lambda: unclip.vary(None, PICTURE), "^bundle: found NoneType, expected a bundle"),
        (lambda: unclip.generate_image(BUNDLE, None), "^captions: found None, expected a caption"),
        (
            lambda: unclip.generate_image(BUNDLE, "a", options=FAST),
            "^options: found DecodeOptions, expected G",
        ),
        (
            lambda: unclip.vary(BUNDLE, PICTURE, options=GenerateOptions()),
            "found GenerateOptions, expected D",
        ),
        (
            lambda: unclip.interpolate(BUNDLE, "a", "b", options=FAST),
            "found DecodeOptions, expected Generate",
        ),
        (
            lambda: unclip.inpaint(BUNDLE, PICTURE, MASK, "a", options=FAST),
            "Options, expected InpaintOptions",
        ),
        (
            lambda: unclip.encode_text(BUNDLE, ["a"]),
            "^clip: found Bundle, expected a CLIP model, such as bun",
        ),
        (lambda: unclip.encode_text(BUNDLE.clip, 3), "^prompts: found 3, expected a list of captions"),
        (
            lambda: unclip.generate_image(BUNDLE, ["a", None]),
            r"^captions\[1\]: found NoneType, expected a",
        ),
        (lambda: unclip.vary(BUNDLE, PICTURE, caption=None), "^caption: found NoneType, expected a caption"),
        (
            lambda: unclip.inpaint(BUNDLE, PICTURE, MASK, ["a", "b"]),
            "^caption: found list, expected a caption",
        ),
        (lambda: unclip.vary(BUNDLE, PICTURE, count=0), "^count is 0; expected at least 1"),
        (
            lambda: unclip.interpolate(BUNDLE, torch.cat([PICTURE] * 2), PICTURE),
            "^first: found 2 pictures, expected a single one",
        ),
        (lambda: unclip.save([PICTURE], "x.png"), "^images: found list, expected one tensor"),
        (lambda: unclip.encode_text(None, ["a"]), "^clip: found NoneType, expected a CLIP model"),
        (lambda: unclip.vary(BUNDLE, "cat.png"), "^image: found str, expected a tensor"),
        (lambda: unclip.vary(BUNDLE, None), "^image: found NoneType, expected a tensor"),
        (lambda: unclip.inpaint(BUNDLE, PICTURE, "mask.png", "a"), "^mask: found str, expected a tensor"),
        (lambda: unclip.interpolate(BUNDLE, PICTURE, 3), "^second: found int, expected a caption, or a pict"),
        (lambda: Region(np.zeros((1, 1, 8, 8)), embeddings(1)), "^mask: found ndarray, expected a tensor"),
        (lambda: Region(MASK, torch.zeros(1, DIM)), "^embedding: found Tensor, expected an Embedding"),
        (lambda: sample_diffusion_prior(BUNDLE.prior, "a", seed=0), "^text: found str, expected TextFeat"),
        (
            lambda: unclip.inpaint(BUNDLE, PICTURE, MASK, "a", prior_options=GenerateOptions()),
            "^prior_options: found GenerateOptions, expected PriorOptions",
        ),
        (lambda: unclip.load_lora(None, "a.safetensors"), "^bundle: found NoneType, expected a bundle"),
        (lambda: unclip.load_lora(BUNDLE, None), "^file: found NoneType, expected the path of a LoRA"),
        (lambda: with_lora(BUNDLE.prior, None, "0.8"), "^strength: found '0.8', expected a finite number"),
        (lambda: unclip.load_bundle(None), "^bundle: found NoneType, expected the name or the folder"),
        (
            lambda: unclip.load_bundle("mini", dtype="fp16"),
            "^dtype: found 'fp16', expected none or one of torch",
        ),
        (lambda: unclip.load_bundle("mini", dtype=torch.int8), "^dtype: found torch.int8, expected none"),
        (lambda: unclip.load_bundle("mini", device="gpu"), "^device: found 'gpu', which cannot be used here"),
        (lambda: default_options(BUNDLE, {"decodr": {"steps": 2}}), "^given: found the stage 'decodr', exp"),
        (lambda: default_options(BUNDLE, {"decoder": 2}), "^decoder: found int, expected settings by name"),
    ],
)
def test_what_is_of_another_kind_is_named(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("wrong", [BUNDLE, None, BUNDLE.clip, BUNDLE.prior, BUNDLE.decoder])
@pytest.mark.parametrize(
    ("kind", "name", "run"),
    [
        (ClipStage, "clip", lambda stage: encode_text(stage, ["a"])),
        (ClipStage, "clip", lambda stage: encode_images(stage, PICTURE)),
        (ClipStage, "clip", lambda stage: zero_shot(stage, embeddings(1), encode_text(BUNDLE.clip, ["a"]))),
        (ClipStage, "clip", zero_embedding),
        (PriorStage, "prior", lambda stage: sample_diffusion_prior(stage, None, seed=0)),
        (PriorStage, "prior", lambda stage: sample_autoregressive_prior(stage, None, seed=0)),
        (PriorStage, "operator", lambda stage: apply_operator(stage, embeddings(1), embeddings(1), seed=0)),
        (DecoderStage, "decoder", lambda stage: decode(stage, embeddings(1), seed=0)),
        (DecoderStage, "decoder", lambda stage: invert(stage, PICTURE, embeddings(1), steps=2)),
        (DecoderStage, "decoder", lambda stage: inpaint(stage, PICTURE, MASK, embeddings(1), seed=0)),
        (DecoderStage, "decoder", lambda stage: inpaint_whole(stage, PICTURE, MASK, embeddings(1), seed=0)),
        (DecoderStage, "decoder", lambda stage: draw_starting_noise(stage, seed=0)),
        (DecoderStage, "decoder", null_embedding),
        (UpsamplerStage, "upsampler", lambda stage: upsample(stage, PICTURE, seed=0)),
    ],
)
def test_another_stage_than_is_asked_for_is_named(
    kind: type, name: str, run: Callable[[object], object], wrong: object
) -> None:
    if isinstance(wrong, kind):
        pytest.skip("this is the stage that is asked for")
    with pytest.raises(ValueError, match=rf"^{name}: found {type(wrong).__name__}, expected an? .*bundle\."):
        run(wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pictures_and_masks_that_are_not_finite_are_named(value: float) -> None:
    spoilt, hole = PICTURE.clone(), MASK.clone()
    spoilt[0, 1, 2, 3] = hole[0, 0, 2, 3] = value
    runs: dict[str, list[Callable[[], object]]] = {
        "image": [
            lambda: painted(image=spoilt),
            lambda: encode_images(BUNDLE.clip, spoilt),
            lambda: inpaint(BUNDLE.decoder, spoilt, MASK, embeddings(1), seed=0),
        ],
        "noise": [lambda: painted(noise=noise().values * value)],
        "mask": [
            lambda: Region(hole, embeddings(1)),
            lambda: inpaint(BUNDLE.decoder, PICTURE, hole, embeddings(1), seed=0),
        ],
    }
    for name, each in runs.items():
        for run in each:
            with pytest.raises(ValueError, match=f"^{name}: found NaN or infinite values"):
                run()


def test_pictures_that_are_counted_to_255_are_named_and_bright_lights_pass() -> None:
    counted = torch.full_like(PICTURE, 255 / 2)
    runs = [
        lambda: painted(image=counted),
        lambda: encode_images(BUNDLE.clip, counted),
        lambda: inpaint(BUNDLE.decoder, counted, MASK, embeddings(1), seed=0),
        lambda: unclip.vary(BUNDLE, counted),
    ]
    for run in runs:
        with pytest.raises(ValueError, match=r"^image: found values of 127\.5 on average, expected 0\.\.1"):
            run()
    lit = PICTURE.clone()
    lit[..., 0, 0] = 40.0
    assert encode_images(BUNDLE.clip, lit).vectors.isfinite().all()
