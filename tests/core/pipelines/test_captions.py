"""A caption a line, and choices in braces."""

from __future__ import annotations

import pytest
from unclip.core.pipelines.captions import choose_words, split_captions


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("a red fox\n\n  a panda  \r\n", ["a red fox", "a panda"]),
        ("one", ["one"]),
        ("", [""]),
        ("\n \n", [""]),
    ],
)
def test_lines_that_are_not_blank_are_captions(text, captions) -> None:
    assert split_captions(text) == captions


def test_every_choice_comes_and_a_seed_always_makes_the_same() -> None:
    caption = "a {flat|3D {red|blue}} panda {|in the rain}"
    found = {choose_words(caption, seed) for seed in range(200)}
    kinds, weather = ("flat", "3D red", "3D blue"), ("", "in the rain")
    assert found == {f"a {kind} panda {each}" for kind in kinds for each in weather}
    assert choose_words(caption, 7) == choose_words(caption, 7)
    # A saved picture has to come out again with every later Python.
    assert [choose_words("{a|b|c|d}", seed) for seed in range(6)] == PINNED
    assert choose_words("{a|b}", 2**64 - 1) in ("a", "b")


PINNED = ["d", "b", "a", "b", "b", "c"]


@pytest.mark.parametrize("caption", ["a panda", "a {b", "a} b", "a | b", ""])
def test_what_is_no_choice_stays(caption) -> None:
    assert choose_words(caption, 0) == caption
