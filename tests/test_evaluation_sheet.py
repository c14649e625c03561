from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from unclip.core.evaluation.sheet import FRAME, INK, PAPER, contact_sheet, to_pil, wrap

FONT = ImageFont.load_default(12)


def coloured(colour, size=(8, 8)):
    return Image.new("RGB", size, colour)


def has(sheet, colour):
    return bool((np.asarray(sheet) == np.array(colour)).all(axis=-1).any())


def test_tensors_become_pictures():
    images = torch.zeros(2, 3, 2, 4)
    images[1, 0, 0, 3], images[1, 1, 1, 0] = 1.0, 2.0
    first, second = to_pil(images)
    assert first.size == (4, 2) and first.mode == "RGB"
    assert second.getpixel((3, 0)) == (255, 0, 0)
    assert second.getpixel((0, 1)) == (0, 255, 0)


def test_pictures_are_read_like_a_page_and_enlarged_pixel_by_pixel():
    picture = coloured((255, 0, 0))
    picture.putpixel((1, 0), (0, 255, 0))
    others = [coloured((0, 0, 200 + index)) for index in range(4)]
    sheet = contact_sheet([picture, *others], columns=3, cell=20, gap=5)
    assert sheet.size == (5 + 3 * (16 + 5), 5 + 2 * (16 + 5))
    assert [sheet.getpixel((5 + 21 * column, 5)) for column in range(3)] == [
        (255, 0, 0),
        (0, 0, 200),
        (0, 0, 201),
    ]
    assert sheet.getpixel((5, 26)) == (0, 0, 202)
    assert [sheet.getpixel((5 + x, 5)) for x in (1, 2, 3, 4)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 255, 0),
        (255, 0, 0),
    ]
    assert sheet.getpixel((4, 5)) == FRAME
    assert sheet.getpixel((2, 2)) == PAPER
    assert sheet.getpixel((47 + 8, 26 + 8)) == PAPER  # the place of the sixth is empty
    assert not has(sheet, INK)


def test_captions_stand_below_their_pictures():
    pictures = [coloured((255, 0, 0), (64, 64))] * 2
    plain = contact_sheet(pictures, columns=2, cell=64, gap=10)
    labelled = contact_sheet(pictures, ["", "a red square"], columns=2, cell=64, gap=10)
    assert labelled.height > plain.height and labelled.width == plain.width
    below = labelled.crop((0, 76, labelled.width, labelled.height))
    assert not has(below.crop((0, 0, 80, below.height)), INK)
    assert has(below.crop((80, 0, below.width, below.height)), INK)
    assert (
        labelled.tobytes()
        == contact_sheet(pictures, ["", "a red square"], columns=2, cell=64, gap=10).tobytes()
    )


def test_smaller_pictures_are_centred():
    sheet = contact_sheet([coloured((255, 0, 0), (40, 40)), coloured((0, 0, 255), (20, 10))], cell=1, gap=4)
    assert sheet.getpixel((4 + 44 + 10, 4 + 15)) == (0, 0, 255)
    assert sheet.getpixel((4 + 44 + 5, 4 + 15)) == PAPER


def test_lines_break_between_words_and_fit():
    text = "a softly shaded emoji of a red apple on a pale blue background"
    lines = wrap(text, FONT, 100, 9)
    assert " ".join(lines) == text
    assert len(lines) > 2 and all(FONT.getlength(line) <= 100 for line in lines)
    # greedy: the next word would not have fitted
    for line, following in pairwise(lines):
        assert FONT.getlength(f"{line} {following.split()[0]}") > 100


def test_long_captions_end_in_an_ellipsis_and_long_words_are_broken():
    lines = wrap("word " * 50, FONT, 80, 3)
    assert len(lines) == 3 and lines[-1].endswith("…") and FONT.getlength(lines[-1]) <= 80
    lines = wrap("x" * 60, FONT, 80, 9)
    assert "".join(lines) == "x" * 60 and all(FONT.getlength(line) <= 80 for line in lines)
    assert wrap("", FONT, 80, 3) == []


@pytest.mark.parametrize(
    ("pictures", "captions", "options", "message"),
    [
        (0, 0, {}, "pictures: found none"),
        (2, 1, {}, "captions: found 1 for 2 pictures"),
        (2, 2, {"columns": 0}, "columns is 0; expected at least 1"),
    ],
)
def test_what_makes_no_sheet_is_refused(pictures, captions, options, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet([coloured((0, 0, 0))] * pictures, ["a"] * captions, **options)
