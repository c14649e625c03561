"""Measures group by group, and a classifier as the judge, on made-up pictograms of two groups."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from unclip.core.data.batches import load_pictograms
from unclip.core.data.pictograms import write_shards
from unclip.core.embeddings.space import Embedding
from unclip.core.evaluation.quality import groups as grouping
from unclip.core.evaluation.quality.config import GroupsConfig
from unclip.core.evaluation.quality.evaluate import evaluate
from unclip.core.evaluation.quality.groups import GroupedEvaluation
from unclip.core.evaluation.quality.judges import (
    ClipJudge,
    ConceptJudge,
    concepts_by_group,
    draw_group_concepts,
)
from unclip.core.evaluation.quality.prompts import draw_plain_prompts, draw_prompts, mixed, true_pictures
from unclip.core.evaluation.quality.retrieval import draw_candidates_apart, pixel_hits
from unclip.core.evaluation.quality.tables import tables_of, to_markdown

from ...helpers.bundle import DECODED_SIZE, DIM, tiny_bundle
from ...helpers.evaluation import config_for, squares_in_groups, write_squares

FEW = GroupsConfig(prompts=12, candidates=6)

# Of `config_for(…, priors=("diffusion",))` and the tiny bundle: shares as hits of 12.
OLD_NUMBERS = {
    "trained": {
        "r_precision_clip": 2,
        "r_precision_pixels": 2,
        "background": 0,
        "background_median": 0,
        "clip_score": -0.02570017,
        "cmmd": 0.6039253,
        "precision": 1.0,
        "recall": 0.4375,
    },
    "held_out": {
        "r_precision_clip": 2,
        "r_precision_pixels": 2,
        "background": 2,
        "background_median": 2,
        "clip_score": 0.002373038,
        "cmmd": 2.099964,
        "precision": 1.0,
        "recall": 0.25,
    },
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shards(squares_in_groups(), folder)
    return folder


class KnowsSquares:
    """A classifier that knows where every square lies, whatever is behind it."""

    def __init__(self, pictograms):
        names = sorted({each.concept for each in pictograms})
        self.config = SimpleNamespace(classes=tuple(names))
        plain = draw_plain_prompts(pictograms, len(names), 0)
        self.pictures, owners = true_pictures(plain, pictograms, DECODED_SIZE)
        classes = torch.tensor([names.index(prompt.pictogram.concept) for prompt in plain])
        self.labels = F.one_hot(classes[owners], len(names)).float()

    def score(self, pictures: Tensor) -> Tensor:
        return self.labels[torch.cdist(self._inside(pictures), self._inside(self.pictures)).argmin(dim=1)]

    @staticmethod
    def _inside(pictures: Tensor) -> Tensor:
        """What differs from the upper left corner, over black; a black square is there all the same."""
        inside = (pictures - pictures[:, :, :1, :1]).abs().amax(dim=1, keepdim=True) > 0.01
        return torch.cat([pictures * inside, inside], dim=1).flatten(1)


# --- drawing ---


def test_plain_prompts_name_a_concept_and_nothing_else_and_come_evenly():
    pictograms = [each for each in squares_in_groups() if each.group == "food"]
    concepts = {each.concept for each in pictograms}
    plain = draw_plain_prompts(pictograms, 100, seed=3)
    assert all(prompt.caption == f"a {prompt.pictogram.concept}" and prompt.plain for prompt in plain)
    assert {prompt.pictogram.concept for prompt in plain[: len(concepts)]} == concepts
    assert len({(prompt.pictogram.key) for prompt in plain}) > len(concepts), "the second round draws anew"
    styled = draw_prompts(pictograms, 50, seed=3)
    assert not any(prompt.plain for prompt in styled)
    both = mixed(plain, styled)
    assert [prompt for prompt in both if prompt.plain] == plain
    assert [prompt for prompt in both if not prompt.plain] == styled
    for start in range(0, 150, 30):
        assert 19 <= sum(prompt.plain for prompt in both[start : start + 30]) <= 21
    assert mixed([], styled) == styled and mixed(plain, []) == plain


def test_a_plain_prompt_is_right_in_every_style_and_a_styled_one_in_its_own():
    pictograms = squares_in_groups()
    prompts = mixed(draw_plain_prompts(pictograms, 3, 0), draw_prompts(pictograms, 2, 0))
    pictures, owners = true_pictures(prompts, pictograms, 16)
    counts = [int((owners == index).sum()) for index in range(5)]
    assert counts == [2 if prompt.plain else 1 for prompt in prompts]
    assert len(pictures) == 8 and sum(counts) == 8
    assert (pictures[owners == 0][0] - pictures[owners == 0][1]).abs().max() > 0.3
    assert pictures[owners == 0][:, :, 0, 0].min() == 1


def test_the_nearest_of_several_true_pictures_counts():
    renders = torch.tensor([0.0, 1.0, 0.4]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    candidates = torch.tensor([[0, 1], [1, 0]])
    owners = torch.tensor([0, 0, 1])
    images = torch.tensor([0.9, 0.6]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert pixel_hits(images, renders, candidates, owners).tolist() == [True, True]
    # Without the second of its pictures the first would be lost to the other caption.
    assert pixel_hits(images, renders[[0, 2]], candidates).tolist() == [False, True]


def test_candidates_are_of_other_concepts():
    labels = ["a", "a", "b", "c", "c", "d"]
    rows = draw_candidates_apart(labels, 4, seed=1)
    assert rows.shape == (6, 4) and rows[:, 0].tolist() == list(range(6))
    for row in rows.tolist():
        assert len(set(row)) == 4
        assert all(labels[other] != labels[row[0]] for other in row[1:])
    with pytest.raises(ValueError, match="candidates is 6; expected at most 5: of 6 prompts 4 are of other"):
        draw_candidates_apart(labels, 6, seed=1)


def test_the_classifier_is_asked_for_concepts_of_the_same_group():
    pictograms = squares_in_groups()
    groups = concepts_by_group(pictograms)
    assert {name: len(found) for name, found in groups.items()} == {"objects": 40, "food": 40}
    rows = draw_group_concepts(pictograms[:20], groups, 10, seed=0)
    for pictogram, row in zip(pictograms, rows, strict=False):
        assert row[0] == pictogram.concept and len(set(row)) == 10
        assert set(row) <= set(groups[pictogram.group])
    assert all(len(row) == 40 for row in draw_group_concepts(pictograms[:3], groups, 100, seed=0))
    judge = ConceptJudge(SimpleNamespace(config=SimpleNamespace(classes=("square 1",))))
    with pytest.raises(ValueError, match="does not know 2 of the concepts in the data, such as 'square 2'"):
        judge.classes_of(["square 1", "square 3", "square 2"])


def test_a_tie_of_the_classifier_is_a_miss():
    scores = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]])
    network = SimpleNamespace(config=SimpleNamespace(classes=("a", "b", "c")), score=lambda _: scores)
    hits = ConceptJudge(network).hits(torch.zeros(2, 3, 4, 4), [["a", "b", "c"], ["a", "b"]])
    assert hits.tolist() == [True, False]


# --- the whole ---


def test_true_pictures_score_in_full_in_every_group(shards, bundle, monkeypatch):
    config = config_for(shards, splits=(), priors=("none",), samples=3, groups=FEW)
    every = load_pictograms(config.data, held_out=None)
    classifier = ConceptJudge(KnowsSquares(every))
    painted = {}

    def measured(change):
        made = GroupedEvaluation(config, FEW, bundle, ClipJudge(bundle.clip), classifier)
        drawn = iter(made._drawn.items())

        def paint(_, texts, **rest):
            name, (_, prompts) = next(drawn)
            assert texts == [prompt.caption for prompt in prompts]
            pictures, owners = true_pictures(prompts, every, DECODED_SIZE)
            last = [int((owners == index).nonzero()[-1]) for index in range(len(prompts))]
            painted[name] = prompts
            return change(pictures[last]), Embedding(torch.zeros(len(texts), DIM), bundle.clip.space)

        monkeypatch.setattr(grouping, "generate_with_embeddings", paint)
        return made.measure()

    perfect, samples = measured(lambda pictures: pictures)
    assert list(perfect["groups"]) == ["food", "objects"]
    for row in (*perfect["groups"].values(), perfect["held_out"]):
        for name in ("r_precision_classifier", "r_precision_pixels", "background"):
            assert (row["priors"]["none"][name]["value"], row["priors"]["none"][name]["of"]) == (1, 12), name
            assert row["real"][name]["value"] == 1
    assert [row["plain"] for row in perfect["groups"].values()] == [6, 6]
    assert perfect["held_out"]["plain"] == 0
    assert all(prompt.pictogram.held_out for prompt in painted["held-out pairs"])
    assert all(prompt.pictogram.group == "food" for prompt in painted["food"])
    assert not any(prompt.pictogram.held_out for prompt in painted["food"] if not prompt.plain)
    assert [(each.split, each.prior, len(each.pictures)) for each in samples] == [
        ("group-food", "none", 3),
        ("group-objects", "none", 3),
        ("held-out-pairs", "none", 3),
    ]
    swapped, _ = measured(lambda pictures: pictures.roll(1, dims=0))
    for row in swapped["groups"].values():
        assert row["priors"]["none"]["r_precision_classifier"]["hits"] <= 1
        assert row["priors"]["none"]["r_precision_pixels"]["hits"] <= 2
    means = swapped["overall"]["priors"]["none"]
    for name in ("r_precision_pixels", "background"):
        values = [row["priors"]["none"][name]["value"] for row in swapped["groups"].values()]
        assert means[name] == pytest.approx(sum(values) / 2)


def test_groups_and_a_classifier_change_none_of_the_other_numbers(shards, bundle):
    config, judge = config_for(shards, priors=("diffusion", "none")), ClipJudge(bundle.clip)
    before = evaluate(config, bundle, judge)
    assert before.tables == {} and "r_precision_classifier" not in before.results["trained"]["real"]
    classifier = ConceptJudge(KnowsSquares(load_pictograms(config.data, held_out=None)))
    after = evaluate(replace(config, groups=FEW), bundle, judge, classifier=classifier)
    for split in after.results.values():
        for measured in (split["real"], *split["priors"].values()):
            assert measured.pop("r_precision_classifier")["of"] == 12
    assert after.results == before.results
    assert list(after.tables) == ["groups"]
    assert json.loads(json.dumps(after.tables)) == after.tables
    assert after.tables["groups"]["groups"]["food"]["priors"].keys() == {"diffusion", "none"}


def test_old_numbers_stay_what_they_were(tmp_path):
    """What a version without groups and classifier has found with this config and bundle."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the biases, which the tiny bundle leaves as they come
        bundle = tiny_bundle()
    found = evaluate(
        config_for(write_squares(tmp_path), priors=("diffusion",)), bundle, ClipJudge(bundle.clip)
    )
    for split, expected in OLD_NUMBERS.items():
        measured = found.results[split]["priors"]["diffusion"]
        for name, value in expected.items():
            number = measured[name]["hits"] if isinstance(measured[name], dict) else measured[name]
            assert number == pytest.approx(value, rel=1e-3, abs=1e-5), (split, name)


def test_tables_show_every_group_their_mean_and_the_held_out_pairs(shards, bundle):
    config = config_for(shards, splits=("trained",), priors=("none",), groups=FEW)
    found = evaluate(config, bundle, ClipJudge(bundle.clip))
    tables = tables_of(found.results, found.tables)
    assert [table.title for table in tables] == [
        "trained pairs, 12 prompts",
        "by group, real pictures",
        "by group, no prior",
    ]
    names = ["food", "objects", "**all groups, mean**", "held-out pairs, all groups"]
    for table in tables[1:]:
        assert [row[0] for row in table.rows] == names
        assert table.columns == ("", "CLIP, %", "pixels, %", "background, %")
    row = found.tables["groups"]["groups"]["food"]["priors"]["none"]["r_precision_pixels"]
    assert tables[2].rows[0][2].startswith(f"{100 * row['value']:.1f} (")
    text = to_markdown(tables)
    assert text.count("\n## ") == 2 and "| food | " in text
    assert all(line.count("|") == 5 for line in text.split("## ")[2].splitlines() if line.startswith("|"))


def test_what_cannot_be_is_said_before_anything_is_painted(shards, bundle, monkeypatch):
    monkeypatch.setattr(grouping, "generate_with_embeddings", lambda *_, **__: pytest.fail("ran"))
    judge = ClipJudge(bundle.clip)

    def refused(message, groups=FEW, classifier=None):
        with pytest.raises(ValueError, match=message):
            evaluate(config_for(shards, splits=(), groups=groups), bundle, judge, classifier=classifier)

    elsewhere = GroupsConfig(("travel",))
    refused("groups.names: the data hold no pictograms of travel; take such of food, obj", elsewhere)
    few = ConceptJudge(SimpleNamespace(config=SimpleNamespace(classes=("square 1", "square 2"))))
    refused("classifier: it does not know 78 of the concepts", classifier=few)
    for groups, message in (
        ({"names": ("flags",)}, "unknown group flags: choose from smileys"),
        ({"prompts": 4, "candidates": 5}, "groups.candidates is 5; expected 2 to groups.prompts, 4"),
        ({"plain": 1.5}, "groups.plain is 1.5, expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            GroupsConfig(**groups)
