"""Labels: broken into lines, shrunk, cut, and in a font that has their letters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from PIL import ImageFont
from unclip.core.pictures import lettering
from unclip.core.pictures.lettering import fit, font_for, wrap

FONT = ImageFont.load_default(12)


@pytest.fixture
def only_the_built_in_font(monkeypatch):
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ())


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


def test_labels_are_set_smaller_before_they_are_cut(only_the_built_in_font):
    roomy = fit(["autoregressive prior", ""], 20, 300, 2)
    assert roomy.font.size == 20 and roomy.lines == [["autoregressive prior"], []]
    assert roomy.height(0) == roomy.line_height >= 20 and roomy.height(1) == 0
    assert 0 < roomy.width <= 300
    width = round(ImageFont.load_default(17).getlength("autoregressive")) + 1
    tight = fit(["autoregressive prior", "a"], 20, width, 2)
    assert tight.font.size == 17 and tight.lines == [["autoregressive", "prior"], ["a"]]
    assert tight.width <= width
    hopeless = fit(["word " * 100], 20, 60, 2)
    assert hopeless.font.size == 16 and hopeless.lines[0][-1].endswith("…")


def test_letters_that_the_font_lacks(only_the_built_in_font):
    """Accents go, where the letter is there without; what is not there at all stays, as a box."""
    _, texts = font_for(["déjà vu Ångström", "a 狐 b"], 12)
    assert texts == ["deja vu Angstrom", "a 狐 b"]
    set_ = fit(["赤い狐" * 20], 12, 60, 3)
    assert len(set_.lines[0]) == 3 and set_.lines[0][-1].endswith("…")


def test_plain_english_looks_the_same_everywhere(monkeypatch):
    monkeypatch.setattr(lettering, "_system_font", None)  # not even asked for
    font, texts = font_for(["CLIP 0.312, guidance 1.5 …"], 12)
    assert font.getname() == ImageFont.load_default(12).getname()
    assert texts == ["CLIP 0.312, guidance 1.5 …"]


def test_another_font_is_taken_where_it_has_more_letters(monkeypatch):
    """A stand-in that has every letter, one that has as few as the built-in font, and none at all."""
    whole, asked = ImageFont.load_default(13), []
    real = lettering._has
    monkeypatch.setattr(lettering, "_has", lambda font, letter: font is whole or real(font, letter))
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ("absent", "poor", "whole", "later"))

    def system_font(name, size):
        asked.append(name)
        return {"absent": None, "poor": ImageFont.load_default(size), "whole": whole}[name]

    monkeypatch.setattr(lettering, "_system_font", system_font)
    font, texts = font_for(["ein süßer Fuchs", "狐"], 13)
    assert font is whole and texts == ["ein süßer Fuchs", "狐"]
    assert asked == ["absent", "poor", "whole"]


def test_a_font_that_is_not_there_is_passed_over():
    assert lettering._system_font("no such font.ttf", 12) is None
