"""A part of a picture of any size painted anew, in its own size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.composite import composite
from unclip.core.pipelines.inpaint import inpaint
from unclip.core.pipelines.inpaint_whole import InpaintWholeOptions, inpaint_whole, surroundings
from unclip.core.pipelines.upsample import upsample

from ...helpers.bundle import DECODED_SIZE, DIM

QUICK = InpaintWholeOptions(steps=3, resamples=1, jump_length=2, feather=0)


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


def row(embedding: Embedding, index: int) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[index : index + 1])


def picture(rows: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(rows))


def box_mask(height: int, width: int, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    ("covered", "shape", "margin", "expected"),
    [
        ((40, 40, 60, 60), (1, 1), 0.0, (40, 40, 60, 60)),
        ((40, 40, 60, 60), (1, 1), 0.5, (30, 30, 70, 70)),
        ((40, 40, 60, 50), (1, 1), 0.0, (40, 35, 60, 55)),  # square around what is wide
        ((0, 0, 20, 20), (1, 1), 0.5, (0, 0, 40, 40)),  # moved into the picture
        ((180, 80, 200, 100), (1, 1), 0.5, (160, 60, 200, 100)),
        ((60, 20, 120, 80), (1, 1), 4.0, (40, 0, 140, 100)),  # as much as the picture has
        ((20, 40, 180, 60), (1, 1), 0.5, (20, -30, 180, 130)),  # what is masked does not fit
        ((80, 40, 100, 60), (1, 2), 0.0, (70, 40, 110, 60)),  # twice as wide as high
    ],
)
def test_a_rectangle_around_the_mask(covered, shape, margin, expected) -> None:
    assert surroundings(box_mask(100, 200, *covered)[0], shape, margin) == expected


def test_an_empty_mask_is_the_whole_picture() -> None:
    assert surroundings(torch.zeros(1, 10, 10), (1, 1), 0.5) == (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("height", "width", "covered"),
    [
        (50, 75, (30, 20, 40, 35)),
        (50, 75, (0, 0, 75, 10)),  # does not fit into a square
        (20, 90, (10, 5, 80, 20)),
        (5, 7, (2, 2, 4, 3)),  # smaller than the decoder's pictures
        (40, 30, (0, 0, 30, 40)),  # all of it
    ],
)
def test_only_what_is_masked_changes_and_all_of_it_does(bundle, embedding, height, width, covered) -> None:
    image, mask = picture(1, height, width), box_mask(height, width, *covered)
    found = inpaint_whole(bundle.decoder, image, mask, row(embedding, 0), seed=0, options=QUICK)
    assert found.shape == image.shape
    kept = (mask == 0).expand_as(image)
    assert torch.equal(found[kept], image[kept])
    assert ((found - image).abs().amax(dim=1, keepdim=True) > 0)[mask > 0].float().mean() > 0.95
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("upsamplers", [0, 1])
def test_of_a_picture_of_the_decoder_s_size_it_is_what_the_steps_give(bundle, embedding, upsamplers) -> None:
    image = picture(1, DECODED_SIZE, DECODED_SIZE)
    mask = box_mask(DECODED_SIZE, DECODED_SIZE, 2, 0, DECODED_SIZE, DECODED_SIZE)
    mask[..., :3, :] = 0
    options = replace(QUICK, margin=1.0, feather=2)
    stages = bundle.upsamplers[:upsamplers]
    assert len(stages) == upsamplers
    found = inpaint_whole(
        bundle.decoder, image, mask, row(embedding, 0), seed=3, options=options, upsamplers=stages
    )
    edited = inpaint(
        bundle.decoder, image, mask, row(embedding, 0), seed=3, options=replace(options, feather=0)
    )
    for stage in stages:
        edited = upsample(stage, edited, seed=3)
    torch.testing.assert_close(found, composite(image, edited, mask, 2))


def test_picture_i_is_that_of_seed_plus_i_whatever_the_masks(bundle, embedding) -> None:
    image = picture(3, 40, 60)
    masks = torch.cat(
        [box_mask(40, 60, 5, 5, 15, 20), torch.zeros(1, 1, 40, 60), box_mask(40, 60, 20, 0, 60, 12)]
    )
    options = replace(QUICK, margin=0.25)
    together = inpaint_whole(bundle.decoder, image, masks, row(embedding, 1), seed=7, options=options)
    assert torch.equal(together[1], image[1])
    for i in (0, 2):
        rows = slice(i, i + 1)
        alone = inpaint_whole(
            bundle.decoder, image[rows], masks[rows], row(embedding, 1), seed=7 + i, options=options
        )
        torch.testing.assert_close(together[rows], alone, atol=2e-5, rtol=0)
        assert (alone - image[rows]).abs().max() > 0.05


def test_one_picture_gives_several_results(bundle, embedding) -> None:
    image, mask = picture(1, 30, 40), box_mask(30, 40, 5, 5, 20, 20)
    found = inpaint_whole(bundle.decoder, image, mask, row(embedding, 0), seed=0, batch_size=2, options=QUICK)
    assert len(found) == 2
    assert (found[0] - found[1]).abs().max() > 0.02


@pytest.mark.parametrize(("covered", "strength"), [(0, 1.0), (1, 0.0), (1, 0.4)])
def test_empty_masks_and_no_strength_give_the_pictures_back(bundle, embedding, covered, strength) -> None:
    image = picture(2, 30, 40)
    mask = torch.full((1, 1, 30, 40), covered, dtype=torch.float32)
    options = replace(QUICK, steps=2, strength=strength)

    def on_stage(*_):
        raise AssertionError("a stage ran")

    found = inpaint_whole(
        bundle.decoder, image, mask, row(embedding, 0), seed=0, options=options, on_stage=on_stage
    )
    assert torch.equal(found, image)


def test_what_is_masked_alone_decides_where_the_rest_is_far_away(bundle, embedding) -> None:
    mask = box_mask(60, 60, 40, 40, 50, 50)
    one, other = picture(1, 60, 60), picture(1, 60, 60)
    other[..., :20, :] = 0  # outside of the margin
    options = replace(QUICK, margin=0.5)
    a, b = (
        inpaint_whole(bundle.decoder, each, mask, row(embedding, 0), seed=0, options=options)
        for each in (one, other)
    )
    assert torch.equal(a[..., 40:50, 40:50], b[..., 40:50, 40:50])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"margin": -0.1}, "margin is"), ({"margin": float("nan")}, "margin is"), ({"feather": -1}, "feather")],
)
def test_values_out_of_range_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)
