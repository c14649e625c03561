"""Two things in one picture: what is true scores in full, what is swapped is told, and chance is chance."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from unclip.core.data.captions import COLOURS
from unclip.core.data.pictograms import Pictogram, write_shards
from unclip.core.data.rendering import composite, render_all
from unclip.core.evaluation.quality import binding as module
from unclip.core.evaluation.quality.binding import WAYS, BindingEvaluation
from unclip.core.evaluation.quality.colour import mean_hues, nearest_hues
from unclip.core.evaluation.quality.config import BindingConfig
from unclip.core.evaluation.quality.evaluate import evaluate
from unclip.core.evaluation.quality.judges import ClipJudge, ConceptJudge
from unclip.core.evaluation.quality.pairs import (
    HUES,
    Pair,
    Thing,
    draw_coloured_pairs,
    draw_placed_pairs,
    render_pairs,
    squares_of,
)
from unclip.core.evaluation.quality.tables import tables_of
from unclip.core.pipelines.conditioning import null_embedding

from ...helpers.bundle import DECODED_SIZE
from ...helpers.evaluation import config_for

# Left, top, width and height of 16: even numbers, which half the size shows exactly.
SHAPES = {
    "bar": (0, 6, 16, 4),
    "block": (4, 4, 8, 8),
    "column": (6, 0, 4, 16),
    "corner": (0, 0, 6, 6),
    "floor": (2, 12, 12, 4),
    "stick": (8, 2, 2, 12),
}
FEW = BindingConfig(pairs=8)


def pictogram(concept, style="noto", colour="#2040d0"):
    x, y, width, height = SHAPES[concept.split()[-1]]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/></svg>'
    )
    return Pictogram(f"{style}/{concept}", concept, style, "objects", (), svg)


def pictograms():
    return [each for each in map(pictogram, SHAPES) if not each.held_out]


class KnowsShapes:
    """A classifier by shape, whatever its colour."""

    def __init__(self):
        self.config = SimpleNamespace(classes=tuple(SHAPES))
        white = torch.full((1, 3), 255)
        shapes = render_all((pictogram(name).svg for name in SHAPES), DECODED_SIZE // 2)
        self.shapes = self._drawn(composite(shapes, white, white))

    def score(self, pictures: Tensor) -> Tensor:
        return -torch.cdist(self._drawn(pictures), self.shapes)

    @staticmethod
    def _drawn(pictures):
        return (pictures.amin(dim=1) < 0.9).flatten(1).float()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shards(map(pictogram, SHAPES), folder)
    return folder


def test_pairs_say_what_is_where_and_what_colour_it_has():
    assert len(pictograms()) >= 4
    coloured = draw_coloured_pairs(pictograms(), 30, seed=1)
    for pair in coloured:
        first, second = pair.things
        assert first.pictogram.concept != second.pictogram.concept and first.colour != second.colour
        words = f"a {first.colour} {first.pictogram.concept} and a {second.colour} {second.pictogram.concept}"
        assert pair.caption == words and {first.colour, second.colour} <= set(HUES)
    placed = draw_placed_pairs(pictograms(), 30, seed=1)
    assert placed[0].caption == f"{placed[0].first.words} above {placed[0].second.words}"
    assert len({pair.caption for pair in coloured}) > 20
    assert draw_coloured_pairs(pictograms(), 5, seed=1) == coloured[:5]


def test_what_has_no_colour_of_its_own_or_says_one_is_not_painted():
    red, gray = pictogram("red bar"), pictogram("gray block", colour="#777777")
    black = pictogram("stick", colour="#101010")
    pairs = draw_coloured_pairs([*pictograms(), red, gray], 200, seed=0)
    shown = {thing.pictogram.concept for pair in pairs for thing in pair.things}
    assert len(shown) >= 4 and not {"red bar", "gray block"} & shown
    with pytest.raises(ValueError, match="found no style with two concepts of one colour in 1 pictograms"):
        draw_coloured_pairs([pictogram("bar"), gray, black], 1, seed=0)
    with pytest.raises(ValueError, match="found no style with two concepts at all in 2 pictograms; give"):
        draw_placed_pairs([pictogram("bar"), pictogram("block", style="twemoji")], 1, seed=0)


def test_things_stand_in_the_middle_of_their_halves():
    pair = Pair(Thing(pictogram("block"), "red"), Thing(pictogram("bar"), "green"))
    (picture,) = render_pairs([pair], 32)
    assert picture.shape == (3, 32, 32) and picture[:, :8].min() == picture[:, 24:].min() == 1
    left, right = squares_of(picture[None], beside=True)
    assert nearest_hues(mean_hues(torch.cat([left, right])), COLOURS) == ["red", "green"]
    white = torch.full((1, 3), 255)
    placed = Pair(Thing(pictogram("block")), Thing(pictogram("bar")))
    above, below = squares_of(render_pairs([placed], 32), beside=False)
    for square, name in ((above, "block"), (below, "bar")):
        assert torch.equal(square, composite(render_all([pictogram(name).svg], 16), white, white))


def test_hues_are_those_of_what_has_a_colour():
    palette = {name: COLOURS[name] for name in HUES}
    pictures = torch.ones(len(HUES), 3, 8, 8)
    for picture, colour in zip(pictures, palette.values(), strict=True):
        picture[:, :3, :3] = torch.tensor(colour)[:, None, None] / 255
    assert nearest_hues(mean_hues(pictures), palette) == list(HUES)
    assert nearest_hues(mean_hues(torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)), palette) == [""]
    pure = mean_hues(torch.eye(3)[:, :, None, None])  # red, green and blue, a third of the circle apart
    assert torch.allclose(pure.norm(dim=1), torch.ones(3, dtype=torch.double))
    assert torch.allclose(pure @ pure.T, 1.5 * torch.eye(3, dtype=torch.double) - 0.5, atol=1e-9)


def test_true_pictures_are_right_and_swapped_ones_swapped(shards, bundle, monkeypatch):
    made = BindingEvaluation(config_for(shards), FEW, bundle, ConceptJudge(KnowsShapes()))

    def measured(change):
        def paint(self, title, way, captions, real):
            return change(real, -1 if "colours" in title else -2)

        monkeypatch.setattr(BindingEvaluation, "_painted", paint)
        return made.measure()[0]

    right = measured(lambda real, _: real)
    for kind in ("colours", "places"):
        assert right[kind]["real"] == right[kind]["both"]
        for name, found in right[kind]["both"].items():
            assert (found["value"], found["of"]) == ("swapped" not in name, 8), (kind, name)
    turned = measured(lambda real, axis: real.roll(real.shape[-1] // 2, dims=axis))
    for kind in ("colours", "places"):
        for name, found in turned[kind]["both"].items():
            assert found["value"] == ("swapped" in name), (kind, name)
    nothing = measured(lambda real, _: torch.ones_like(real))
    assert nothing["colours"]["both"]["colours"]["hits"] == 0
    assert nothing["places"]["both"]["positions"]["hits"] == 0


def test_the_decoder_is_given_what_the_row_says(shards, bundle, monkeypatch):
    given, null = [], null_embedding(bundle.decoder, clip=bundle.clip).vectors
    real = module.decode

    def recorded(decoder, embedding, text, **options):
        shown = not torch.allclose(embedding.vectors, null)
        given.append((shown, text is not None, options["seed"], options["batch_size"]))
        return real(decoder, embedding, text, **options)

    monkeypatch.setattr(module, "decode", recorded)
    config, told = config_for(shards, splits=(), binding=FEW, batch_size=5, seed=3), []
    judge = ConceptJudge(KnowsShapes())
    found = evaluate(config, bundle, ClipJudge(bundle.clip), lambda *report: told.append(report), judge)
    both = [(3, 5), (8, 3)]
    expected = [
        (embedding, text, *rest)
        for embedding, text in ((True, False), (False, True), (True, True))
        for rest in both
    ]
    assert given == 2 * expected
    table = found.tables["binding"]
    assert json.loads(json.dumps(table)) == table
    assert list(table["places"]) == ["pairs", "real", *WAYS]
    assert [(each.split, each.prior) for each in found.samples] == [
        (f"binding-{kind}", way) for kind in ("colours", "places") for way in WAYS
    ]
    assert told[-1] == ("two things, places, both", 8, 8)
    tables = tables_of(found.results, found.tables)
    assert [len(each.rows) for each in tables] == [4, 4]
    assert tables[0].columns[-2:] == ("both colours right, %", "colours swapped, %")
    assert tables[1].title == "two things together, “a … above a …”, 8 pairs"


def test_without_a_classifier_there_is_no_such_table(shards, bundle):
    with pytest.raises(ValueError, match=r"^\[binding\] needs a classifier"):
        evaluate(config_for(shards, splits=(), binding=FEW), bundle, ClipJudge(bundle.clip))
