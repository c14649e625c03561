"""Captions and backgrounds."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from unclip.core.data.captions import (
    COLOURS,
    STYLE_WORDS,
    WHITE,
    Background,
    caption,
    named_colour,
    plain_backgrounds,
    random_background,
    with_article,
)

UNNAMED = Background("", WHITE, WHITE)
TEAL = Background("pale teal", named_colour("pale teal"), named_colour("pale teal"))
KEYWORDS = ("fruit", "snack", "orchard")


def captions(count: int, style: str | None, background: Background, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [caption("apple", KEYWORDS, style, background, rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("apple", "an apple"),
        ("red apple", "a red apple"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("euro banknote", "a euro banknote"),
        ("onion", "an onion"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("x-ray", "an x-ray"),
        ("Owl", "an Owl"),
        ("3d apple", "a 3d apple"),
    ],
)
def test_articles_follow_the_sound(words: str, expected: str) -> None:
    assert with_article(words) == expected


def test_captions_are_a_function_of_the_seed() -> None:
    assert captions(50, "noto", TEAL) == captions(50, "noto", TEAL)
    assert captions(50, "noto", TEAL) != captions(50, "noto", TEAL, seed=1)


def test_a_named_background_is_always_in_the_caption() -> None:
    found = captions(300, None, TEAL)
    assert all("pale teal background" in text for text in found)
    assert {text.startswith("pale teal background, ") for text in found} == {True, False}
    assert all("on a pale teal background" in text for text in found if " on " in text)


def test_an_unnamed_background_is_never_in_the_caption() -> None:
    found = captions(300, "noto", UNNAMED)
    assert not any("background" in text or text.endswith((" ", ",")) for text in found)


@pytest.mark.parametrize("style", STYLE_WORDS)
def test_a_given_style_is_named(style: str) -> None:
    found = captions(200, style, UNNAMED)
    assert all(any(words in text for words in STYLE_WORDS[style]) for text in found)
    assert all(any(words in text for text in found) for words in STYLE_WORDS[style])


def test_without_a_style_none_is_named() -> None:
    words = set(itertools.chain.from_iterable(STYLE_WORDS.values()))
    assert not any(word in text for text in captions(200, None, UNNAMED) for word in words)


def test_the_concept_or_two_of_its_keywords_tell_what_it_is() -> None:
    found = captions(2000, None, UNNAMED)
    by_keywords = [text for text in found if "apple" not in text]
    assert all(sum(word in text for word in KEYWORDS) >= 2 for text in by_keywords)
    assert 0.01 < len(by_keywords) / len(found) < 0.08
    assert 0.08 < sum(any(word in text for word in KEYWORDS) for text in found) / len(found) < 0.16
    assert {"apple", "an apple"} <= set(found)


def test_a_concept_without_keywords_is_named() -> None:
    rng = random.Random(0)
    assert all("apple" in caption("apple", (), "noto", UNNAMED, rng) for _ in range(200))


def test_backgrounds_are_white_coloured_and_graded_in_the_documented_shares() -> None:
    rng = random.Random(0)
    drawn = [random_background(rng) for _ in range(4000)]
    kinds = Counter(
        "gradient" if "gradient" in each.name else "white" if each.top == WHITE else "colour"
        for each in drawn
    )
    assert abs(kinds["white"] / 4000 - 0.45) < 0.03
    assert abs(kinds["colour"] / 4000 - 0.45) < 0.03
    assert abs(sum(not each.name for each in drawn) / 4000 - 0.225) < 0.03
    for each in drawn:
        if "gradient" in each.name:
            first, second = each.name.removesuffix(" gradient").split(" to ")
            assert (each.top, each.bottom) == (COLOURS[first], COLOURS[second])
            assert first != second
        else:
            assert each.top == each.bottom == named_colour(each.name or "white")


@pytest.mark.parametrize("white", [0.0, 0.2, 0.9])
def test_white_comes_as_often_as_asked_and_gradients_in_a_tenth(white: float) -> None:
    rng = random.Random(0)
    drawn = [random_background(rng, white) for _ in range(4000)]
    assert abs(sum(each.top == each.bottom == WHITE for each in drawn) / 4000 - white) < 0.03
    assert abs(sum("gradient" in each.name for each in drawn) / 4000 - 0.1) < 0.03


def test_plain_backgrounds_can_be_told_apart() -> None:
    backgrounds = plain_backgrounds()
    assert len({each.name for each in backgrounds}) == len(backgrounds) == 1 + 11 + 9
    for one, other in itertools.combinations(backgrounds, 2):
        distance = sum((a - b) ** 2 for a, b in zip(one.top, other.top, strict=True)) ** 0.5
        assert distance > 20, (one.name, other.name)


def test_a_pale_colour_lies_between_the_colour_and_white() -> None:
    assert named_colour("white") == WHITE
    assert named_colour("teal") == (32, 160, 160)
    assert named_colour("pale teal") == tuple(round(0.72 * 255 + 0.28 * value) for value in (32, 160, 160))
