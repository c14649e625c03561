"""The script that says which everyday captions the data know."""

from __future__ import annotations

import runpy

import pytest
from unclip.core.data.pictograms import Pictogram

from ..helpers.sources import ROOT

SCRIPT = runpy.run_path(str(ROOT / "tools" / "mark_captions.py"))


def pictogram(concept: str, *keywords: str) -> Pictogram:
    return Pictogram(f"noto/{concept}", concept, "noto", "objects", keywords, "<svg/>")


@pytest.mark.parametrize(
    ("caption", "known"),
    [
        ("a blue car", True),
        ("a pair of scissors", True),
        ("a cup of coffee", True),
        ("a wooden car", False),
        ("a car on a tree", False),
    ],
)
def test_a_caption_is_known_where_one_pictogram_has_all_that_it_names(caption: str, known: bool) -> None:
    data = [
        pictogram("automobile", "car"),
        pictogram("scissors"),
        pictogram("hot beverage", "coffee", "drink"),
        pictogram("tree"),
    ]
    assert any(SCRIPT["knows"](each, caption) for each in data) == known


def test_the_pictogram_in_the_nearest_words_is_named() -> None:
    data = [pictogram("police car"), pictogram("bus", "car", "clock"), pictogram("car")]
    assert SCRIPT["marked"](["a car", "a violin"], data) == [("a car", "car"), ("a violin", "")]


def test_the_page_has_every_caption() -> None:
    captions = SCRIPT["CAPTIONS"].read_text(encoding="utf-8").splitlines()
    page = SCRIPT["MARKED"].read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == captions
    known = sum(row[1].strip() == "known" for row in rows)
    assert 0 < known < len(captions)
    assert f"{known} are known to them" in page
