from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from unclip.core.pipelines import encode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.stages import ClipStage

from ...helpers.bundle import TEXT_LENGTH, tiny_bundle
from ...helpers.clip import same_in_open_clip


@pytest.fixture(scope="module")
def clip() -> ClipStage:
    return tiny_bundle().clip


@pytest.fixture(scope="module")
def unit_clip(clip) -> ClipStage:
    return replace(clip, space=replace(clip.space, norm="unit"))


def test_captions_are_encoded_as_open_clip_does(clip) -> None:
    found = encode_text(clip, ["a red day", "two good"])
    expected = same_in_open_clip(clip.network).encode_text(clip.tokenizer(["a red day", "two good"]))
    assert (found.pooled - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert found.tokens.shape == (2, TEXT_LENGTH, 32)
    assert found.mask.sum(1).tolist() == [5, 4]
    assert found.space == clip.space


def test_the_space_decides_about_the_norm(clip, unit_clip) -> None:
    raw, unit = encode_text(clip, ["a red day"]), encode_text(unit_clip, ["a red day"])
    torch.testing.assert_close(unit.pooled, nn.functional.normalize(raw.pooled, dim=-1))
    assert (raw.pooled.norm() - 1).abs() > 0.1
    assert torch.equal(raw.tokens, unit.tokens)
    picture = torch.rand(1, 3, 16, 16)
    raw, unit = encode_images(clip, picture), encode_images(unit_clip, picture)
    torch.testing.assert_close(unit.vectors, nn.functional.normalize(raw.vectors, dim=-1))
    assert (raw.vectors.norm() - 1).abs() > 0.1


def test_null_is_the_empty_caption(clip) -> None:
    found = encode_text(clip, ["a red day", "two good", "a day"])
    empty = encode_text(clip, [""])
    assert len(found.null) == 1
    assert found.null.null is None
    torch.testing.assert_close(found.null.pooled, empty.pooled)
    torch.testing.assert_close(found.null.tokens, empty.tokens)
    assert found.null.mask.sum() == 2
    torch.testing.assert_close(empty.null.pooled, empty.pooled)


def test_rows_do_not_depend_on_each_other(clip) -> None:
    together = encode_text(clip, ["a red day", "two good"])
    alone = encode_text(clip, ["two good"])
    torch.testing.assert_close(together.pooled[1:], alone.pooled)
    pictures = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(
        encode_images(clip, pictures).vectors[1:2], encode_images(clip, pictures[1:2]).vectors
    )


def test_features_are_float32_whatever_the_network_runs_in(clip) -> None:
    half = tiny_bundle().clip
    half.network.bfloat16()
    text, images = encode_text(half, ["a red day"]), encode_images(half, torch.rand(1, 3, 20, 30))
    assert {text.tokens.dtype, text.pooled.dtype, images.vectors.dtype} == {torch.float32}
    expected = encode_text(clip, ["a red day"]).pooled
    assert nn.functional.cosine_similarity(text.pooled, expected).item() > 0.95


def test_long_captions_are_cut_with_a_warning(clip, caplog) -> None:
    words = " ".join(["day"] * 20)
    with caplog.at_level(logging.WARNING):
        found = encode_text(clip, ["a day", words])
    assert len(caplog.records) == 1
    assert caplog.messages[0] == (
        f"the caption {words[:60] + '…'!r} has 20 tokens and this CLIP model reads 14: the last 6 are cut off"
    )
    assert found.mask[1].all()
    cut = encode_text(clip, [" ".join(["day"] * 14)])
    torch.testing.assert_close(found.pooled[1:], cut.pooled)


def test_a_caption_that_just_fits_is_not_warned_of(clip, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        encode_text(clip, [" ".join(["day"] * 14)])
        encode_text(replace(clip, tokenizer=lambda texts: clip.tokenizer(texts)), [" ".join(["day"] * 20)])
    assert caplog.messages == []


def test_many_pictures_go_through_in_parts(clip, monkeypatch) -> None:
    pictures = torch.rand(5, 3, 16, 16)
    whole = encode_images(clip, pictures).vectors
    monkeypatch.setattr(encode, "IMAGES_AT_ONCE", 2)
    torch.testing.assert_close(encode_images(clip, pictures).vectors, whole)


def test_many_captions_go_through_in_parts(clip, monkeypatch) -> None:
    captions = ["a red day", "two good", "a day", "", "good"]
    whole = encode_text(clip, captions)
    monkeypatch.setattr(encode, "CAPTIONS_AT_ONCE", 2)
    told: list[int] = []
    found = encode_text(clip, captions, callback=told.append)
    assert told == [2, 4, 5]  # of those given: the empty caption of the third part is not counted
    for name in ("tokens", "mask", "pooled"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
        torch.testing.assert_close(getattr(found.null, name), getattr(whole.null, name))


def test_values_outside_the_range_are_clamped(clip) -> None:
    picture = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(
        encode_images(clip, picture).vectors, encode_images(clip, picture.clamp(0, 1)).vectors
    )


def test_the_fit_of_pictures_that_are_not_square(clip) -> None:
    picture = torch.zeros(1, 3, 16, 64)
    picture[..., :16] = 1
    crop, squash = (encode_images(clip, picture, fit=fit).vectors for fit in ("crop", "squash"))
    torch.testing.assert_close(crop, encode_images(clip, torch.zeros(1, 3, 16, 16)).vectors)
    assert (crop - squash).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts: found an empty list, expected at least one caption (it may be empty)"),
        ("a red day", "prompts: found 'a red day', expected a list of captions"),
        (["a", 3], "prompts: found ['a', 3], expected a list of captions"),
    ],
)
def test_wrong_captions_are_named(clip, prompts, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_text(clip, prompts)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 16, 16), "image: found shape (3, 16, 16), expected [batch, 3, height, width]"),
        (torch.zeros(1, 4, 16, 16), "image: found shape (1, 4, 16, 16)"),
        (torch.zeros(0, 3, 16, 16), "image: found shape (0, 3, 16, 16)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "image: found torch.uint8, expected floating-point"),
    ],
)
def test_wrong_pictures_are_named(clip, images, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        encode_images(clip, images)
