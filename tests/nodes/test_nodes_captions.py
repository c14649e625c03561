"""Several captions beside a batch that a prior has made of them: each goes with all that is made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unclip.core.embeddings.batches import common_batch
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.formats.load import load_any_stage
from unclip.core.pipelines.encode import encode_text
from unclip.core.stages import Bundle

from ..helpers.bundle import DIM, tiny_bundle
from ..helpers.glide import write_glide
from ..helpers.nodes import run

CAPTIONS = ["a red fox", "an apple on a tree"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return tiny_bundle(upsamplers=0)


@pytest.fixture(scope="module")
def text(tiny) -> TextFeatures:
    return encode_text(tiny.clip, CAPTIONS)


@pytest.fixture(scope="module")
def embeddings(tiny) -> Embedding:
    generator = torch.Generator().manual_seed(4)
    return Embedding(tiny.clip.space.unstandardise(torch.randn(6, DIM, generator=generator)), tiny.clip.space)


def row(embeddings: Embedding, index: int) -> Embedding:
    return replace(embeddings, vectors=embeddings.vectors[index : index + 1])


def pictures(count: int, side: int = 16) -> Tensor:
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(0))


# --- the rule ---


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ({"embedding": 6, "text": 2}, 6),
        ({"embedding": 6, "text": 2, "negative_text": 3, "noise": 1}, 6),
        ({"image": 4, "upsampler_text": 2, "batch_size": 1}, 4),
        ({"embedding": 6, "text": 2, "batch_size": 6}, 6),
        ({"text": 4, "negative_text": 2}, 4),
    ],
)
def test_captions_serve_a_batch_that_is_a_multiple_of_them(sizes, batch) -> None:
    assert common_batch(**sizes) == batch


@pytest.mark.parametrize(
    "sizes",
    [
        {"embedding": 6, "text": 4},
        {"embedding": 3, "text": 2},
        {"embedding": 2, "text": 6},
        {"embedding": 6, "negative_embedding": 2},
        {"embedding": 6, "image": 3},
        {"text": 2, "batch_size": 4},  # two captions, or four of each?
    ],
)
def test_all_else_must_be_as_many(sizes) -> None:
    with pytest.raises(ValueError, match="batch sizes do not match"):
        common_batch(**sizes)


def test_captions_are_repeated_one_after_the_other(text) -> None:
    text = replace(text, control=text.pooled)
    found = text.expand(6)
    for name in ("tokens", "mask", "pooled", "control"):
        assert torch.equal(getattr(found, name), getattr(text, name)[[0, 0, 0, 1, 1, 1]]), name
    with pytest.raises(ValueError, match="text has 2 captions, expected 1 or 5"):
        text.expand(5)


# --- the nodes ---


@pytest.mark.parametrize("kept", [{"repeat": 3}, {"candidates": 4, "keep": 3}])
def test_pictures_of_each_caption_are_those_made_alone(tiny, text, kept) -> None:
    prior = {"prior": tiny.prior, "seed": 10, "steps": 2, "candidates": 1}
    embeddings, _ = run("UnCLIPDiffusionPrior", **prior | kept, text=text)
    decoder = {"decoder": tiny.decoder, "steps": 2}
    (found,) = run(
        "UnCLIPDecode", **decoder, embedding=embeddings, text=text, negative_text=text, seed=5, repeat=2
    )
    assert len(found) == 12
    for place in (0, 5, 6, 11):
        one = text.rows(place // 6, place // 6 + 1)
        (alone,) = run(
            "UnCLIPDecode",
            **decoder,
            embedding=row(embeddings, place // 2),
            text=one,
            negative_text=one,
            seed=5 + place,
        )
        torch.testing.assert_close(found[place : place + 1], alone, **CLOSE)
    (other,) = run("UnCLIPDecode", **decoder, embedding=embeddings, text=text.rows(0, 1), seed=5, repeat=2)
    assert not torch.allclose(other[6:], found[6:], atol=1e-3)


@pytest.mark.parametrize("node", ["UnCLIPInpaint", "UnCLIPInpaintWhole"])
def test_inpainting_takes_the_captions(tiny, text, embeddings, node: str) -> None:
    given = {"decoder": tiny.decoder, "image": pictures(1), "mask": torch.ones(1, 16, 16), "steps": 2}
    given["resamples"] = 1
    (found,) = run(node, **given, embedding=embeddings, text=text, seed=3)
    (alone,) = run(node, **given, embedding=row(embeddings, 3), text=text.rows(1, 2), seed=6)
    torch.testing.assert_close(found[3:4], alone, **CLOSE)
    with pytest.raises(ValueError, match=r"^batch sizes do not match: embedding 6, text 4"):
        run(node, **given, embedding=embeddings, text=encode_text(tiny.clip, ["a"] * 4))


def test_a_sweep_and_its_scores_take_the_captions(tiny, text, embeddings) -> None:
    given = {"decoder": tiny.decoder, "steps": 2, "guidance_scales": "1, 3"}
    found, labels = run("UnCLIPGuidanceSweep", **given, embedding=embeddings, text=text, seed=3)
    alone, _ = run("UnCLIPGuidanceSweep", **given, embedding=row(embeddings, 2), text=text.rows(0, 1), seed=5)
    torch.testing.assert_close(found[4:6], alone, **CLOSE)
    lines = run("UnCLIPScore", clip=tiny.clip, image=found, text=text, groups=labels)[1].splitlines()
    for caption in (0, 1):
        part = found[6 * caption : 6 * caption + 6]
        one = text.rows(caption, caption + 1)
        expected = run("UnCLIPScore", clip=tiny.clip, image=part, text=one)[1].splitlines()
        assert lines[6 * caption : 6 * caption + 6] == expected


def test_an_edit_by_captions_takes_a_batch_of_each(tiny, text, embeddings) -> None:
    given = {"theta_max": 0.4, "frames": 2}
    three = encode_text(tiny.clip, ["a", "two love", "a day"])
    (found,) = run("UnCLIPTextDiff", **given, embedding=embeddings, target_text=text, baseline_text=three)
    (alone,) = run(
        "UnCLIPTextDiff",
        **given,
        embedding=row(embeddings, 4),
        target_text=text.rows(1, 2),
        baseline_text=three.rows(2, 3),
    )
    torch.testing.assert_close(found.vectors[8:10], alone.vectors)


def test_a_prior_begins_from_a_batch_of_each(tiny, text, embeddings) -> None:
    given = {"prior": tiny.prior, "steps": 2, "candidates": 2, "strength": 0.5}
    found, negative = run(
        "UnCLIPDiffusionPrior", **given, text=text, negative_text=text, image_embedding=embeddings, seed=3
    )
    assert len(negative) == 6
    one = text.rows(1, 2)
    alone, _ = run(
        "UnCLIPDiffusionPrior",
        **given,
        text=one,
        negative_text=one,
        image_embedding=row(embeddings, 4),
        seed=7,
    )
    torch.testing.assert_close(row(found, 4).vectors, alone.vectors, **CLOSE)


def test_a_sweep_of_captions_alone(tmp_path: Path) -> None:
    path = write_glide(tmp_path)
    text = encode_text(load_any_stage(path, expect="clip"), ["the tee in there", "here"])
    given = {"decoder": load_any_stage(path), "steps": 2}
    found, _ = run("UnCLIPGuidanceSweep", **given, text=text, guidance_scales="1, 3", seed=2)
    assert len(found) == 4
    (alone,) = run("UnCLIPDecode", **given, text=text.rows(1, 2), guidance_scale=3.0, seed=3)
    torch.testing.assert_close(found[3:], alone, **CLOSE)
    with pytest.raises(ValueError, match=r"^text: this decoder needs a caption"):
        run("UnCLIPGuidanceSweep", **given, guidance_scales="1", seed=2)


def test_upsamplers_take_the_captions(tmp_path: Path) -> None:
    path = write_glide(tmp_path, "upsample")
    text = encode_text(load_any_stage(path, expect="clip"), ["the tee in there", "here"])
    given = {"upsampler": load_any_stage(path)}
    image = pictures(4, 8)
    (found,) = run("UnCLIPUpsample", **given, image=image, text=text, seed=1)
    (alone,) = run("UnCLIPUpsample", **given, image=image[2:3], text=text.rows(1, 2), seed=3)
    torch.testing.assert_close(found[2:3], alone, **CLOSE)
    with pytest.raises(ValueError, match="batch sizes do not match: image 3, text 2"):
        run("UnCLIPUpsample", **given, image=image[:3], text=text)
