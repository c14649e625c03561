"""Stickers: cards with words as large as they fit, and pictures stuck on pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unclip.core.pictures.card import word_card
from unclip.core.pictures.lettering import LEAST, largest
from unclip.core.pictures.sheet import THEMES
from unclip.core.pipelines.composite import box_of, paste

from ..helpers.nodes import run


def noise(batch=1, height=64, width=64):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(0))


def ink(card) -> np.ndarray:
    """Where a white card is dark."""
    return np.asarray(card.convert("L")) < 128


# --- lettering ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["iPod", "a grinning face", "extraordinarily long words"])
@pytest.mark.parametrize("size", [(120, 60), (60, 120), (400, 40)])
def test_words_are_as_large_as_they_fit(words, size) -> None:
    width, height = size
    found = largest(words, width, height)
    assert " ".join(found.lines[0]) == words, "no word is broken or cut"
    assert found.width <= width and found.height(0) <= height
    larger = largest(words, 2 * width, 2 * height)
    assert larger.font.size >= 2 * found.font.size > found.font.size >= LEAST


def test_words_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"words: 'a pizza' do not fit into 8×30 pixels in letters"):
        largest("a pizza", 8, 30)


def test_a_card_has_its_words_in_the_middle() -> None:
    dark = ink(word_card("HHH", (100, 50)))
    rows, columns = np.nonzero(dark.any(1))[0], np.nonzero(dark.any(0))[0]
    assert abs(rows.mean() - 24.5) < 4 and abs(columns.mean() - 49.5) < 4
    assert len(columns) > 50, "they fill most of it"
    black = np.asarray(word_card("HHH", (100, 50), "black"))
    assert (black[3, 3] == THEMES["black"].paper).all() and black.max() > 200
    with pytest.raises(ValueError, match="words: found none"):
        word_card("  ", (100, 50))


# --- place ----------------------------------------------------------------------------------------------


def test_a_box_is_given_by_shares() -> None:
    assert box_of((100, 200), (0.5, 0.5), (0.5, 0.2)) == (50, 40, 150, 60)
    assert box_of((100, 200), (0.0, 1.0), (0.5, 0.2)) == (-50, 90, 50, 110)
    left, top, right, bottom = box_of((10, 10), (0.5, 0.5), (0.01, 0.01))
    assert (right - left, bottom - top) == (1, 1)


def test_a_sticker_keeps_its_proportions_and_the_rest_stays_to_the_bit() -> None:
    image = noise().movedim(-1, 1)
    wide = torch.ones(1, 3, 10, 20)
    found = paste(image, wide, (16, 16, 48, 48))
    changed = (found != image).any(dim=1)[0]
    assert changed[24:40, 16:48].all() and int(changed.sum()) == 16 * 32
    torch.testing.assert_close(found[0, :, 24:40, 16:48], torch.ones(3, 16, 32))


@pytest.mark.parametrize("x", [0.0, 1.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_what_reaches_out_of_the_picture_is_cut_off(x, y, share) -> None:
    image, sticker = torch.zeros(1, 3, 33, 64), torch.ones(1, 3, 5, 5)
    found = paste(image, sticker, box_of((33, 64), (x, y), (share, share)))
    assert found.shape == image.shape
    side = round(33 * share) / 2
    assert float(found[0, 0].sum()) == pytest.approx(side * side, abs=2 * side + 1)


@pytest.mark.parametrize("box", [(-20, 3, -10, 13), (64, 3, 74, 13), (3, 90, 13, 99), (3, -90, 13, -80)])
def test_a_box_beside_the_picture_leaves_it_alone(box) -> None:
    image = torch.rand(1, 3, 33, 64)
    assert torch.equal(paste(image, torch.ones(1, 3, 5, 5), box), image)


def test_batches_of_stickers() -> None:
    images, stickers = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 4, 4)
    assert paste(images, stickers[:1], (0, 0, 4, 4)).sum() == paste(images[:1], stickers, (0, 0, 4, 4)).sum()
    with pytest.raises(ValueError, match="batch sizes do not match"):
        paste(images, torch.ones(3, 3, 4, 4), (0, 0, 4, 4))


# --- node -----------------------------------------------------------------------------------------------


def test_the_node_sticks_words_or_a_picture() -> None:
    image = noise(2, 128, 128)
    (found,) = run("UnCLIPSticker", image=image, words="iPod")
    changed = (found != image).any(dim=-1)
    assert found.shape == image.shape and torch.equal(changed[0], changed[1])
    assert changed[0, 61:93, 32:96].all() and int(changed[0].sum()) == 32 * 64
    (other,) = run("UnCLIPSticker", image=image, words="apple")
    assert not torch.equal(other, found)
    (stuck,) = run("UnCLIPSticker", image=image, sticker=torch.ones(1, 9, 9, 4))
    torch.testing.assert_close(stuck[0, 61:93, 48:80], torch.ones(32, 32, 3))


def test_the_node_wants_one_thing_to_stick() -> None:
    for given in ({}, {"words": " "}, {"words": "iPod", "sticker": noise()}):
        with pytest.raises(ValueError, match="words, sticker: give one of them"):
            run("UnCLIPSticker", image=noise(), **given)
    with pytest.raises(ValueError, match=r"words: 'iPod' do not fit into \d+×\d+ pixels"):
        run("UnCLIPSticker", image=noise(), words="iPod", width=0.1)
    with pytest.raises(ValueError, match="sticker: found a tensor of shape"):
        run("UnCLIPSticker", image=noise(), sticker=torch.ones(4, 4))


def test_a_cut_out_sticker_shows_the_picture_around_it_and_alpha_stays() -> None:
    image, sticker = noise(2), torch.ones(1, 10, 20, 4)
    sticker[:, :, :10, 3] = 0
    given = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.25, "sticker": sticker}
    (found,) = run("UnCLIPSticker", image=image, words="", **given)
    assert found.shape == image.shape
    assert torch.equal(found[:, 26:38, 16:30], image[:, 26:38, 16:30]), "behind the transparent half"
    assert found[:, 26:38, 34:48].min() > 1 - 1e-6
    clear = torch.cat([image, torch.zeros(2, 64, 64, 1)], dim=-1)
    (found,) = run("UnCLIPSticker", image=clear, words="", **given)
    assert found[:, 26:38, 34:48].min() > 1 - 1e-6 and torch.equal(found[:, :20], clear[:, :20])
