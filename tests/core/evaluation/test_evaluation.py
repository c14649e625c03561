"""The whole evaluation, on made-up pictograms and a tiny bundle of random weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from unclip.core.data.batches import load_pictograms
from unclip.core.embeddings.space import Embedding
from unclip.core.evaluation.quality import evaluate as evaluation
from unclip.core.evaluation.quality.config import GuidanceScales
from unclip.core.evaluation.quality.evaluate import evaluate
from unclip.core.evaluation.quality.judges import ClipJudge
from unclip.core.evaluation.quality.prompts import draw_prompts, render_prompts
from unclip.core.pipelines.generate import PRIORS

from ...helpers.bundle import DECODED_SIZE, DIM
from ...helpers.evaluation import config_for, write_squares


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("data"))


class LookupJudge:
    """Knows every true picture: its embedding is the caption's, a unit vector of its own."""

    def __init__(self, prompts, size):
        self.known = {prompt.caption: index for index, prompt in enumerate(prompts)}
        self.renders = render_prompts(prompts, size)

    def captions(self, captions):
        return F.one_hot(torch.tensor([self.known[caption] for caption in captions]), len(self.known)).float()

    def images(self, pictures):
        nearest = torch.cdist(pictures.flatten(1), self.renders.flatten(1)).argmin(dim=1)
        return F.one_hot(nearest, len(self.known)).float()


def test_true_pictures_score_in_full_and_random_ones_by_chance(shards, bundle, monkeypatch):
    config = config_for(
        shards, prompts=100, candidates=100, reference=30, splits=("trained",), priors=("none",)
    )
    drawn = draw_prompts(load_pictograms(config.data), 130, config.seed)
    judge = LookupJudge(drawn, DECODED_SIZE)
    truth = render_prompts(drawn[:100], DECODED_SIZE)

    def measures(pictures):
        made = pictures, Embedding(torch.zeros(len(pictures), DIM), bundle.clip.space)
        monkeypatch.setattr(evaluation, "generate_with_embeddings", lambda *_, **__: made)
        results = evaluate(config, bundle, judge).results["trained"]
        assert results["prompts"] == 100
        return results["real"], results["priors"]["none"]

    real, perfect = measures(truth)
    assert perfect == real
    for name in ("r_precision_clip", "r_precision_pixels", "background", "background_median"):
        assert perfect[name]["value"] == 1 and perfect[name]["of"] == 100

    _, random = measures(torch.rand(100, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert random["r_precision_clip"]["hits"] <= 4 and random["r_precision_pixels"]["hits"] <= 4
    assert random["background"]["value"] < 0.3
    assert random["cmmd"] > real["cmmd"]
    assert real["clip_score"] == 1 and random["clip_score"] < 0.05

    _, swapped = measures(truth.roll(1, dims=0))  # the right pictures, but for other captions
    assert swapped["r_precision_clip"]["hits"] == swapped["r_precision_pixels"]["hits"] == 0
    assert swapped["cmmd"] == pytest.approx(real["cmmd"])
    assert (swapped["precision"], swapped["recall"]) == (real["precision"], real["recall"])


def test_an_evaluation_repeats_and_measures_every_split_with_every_prior(shards, bundle):
    config, told = config_for(shards, priors=tuple(PRIORS)), []
    judge = ClipJudge(bundle.clip)
    found = evaluate(config, bundle, judge, lambda *report: told.append(report))
    assert json.loads(json.dumps(found.results)) == found.results
    assert list(found.results) == ["trained", "held_out"]
    held_out = found.results["held_out"]["pictograms"]
    assert 0 < held_out < 20 and found.results["trained"]["pictograms"] == 160 - held_out
    for split in found.results.values():
        assert list(split["priors"]) == list(PRIORS)
        assert all(set(row) == set(split["real"]) for row in split["priors"].values())
    assert [(s.split, s.prior, len(s.captions), len(s.pictures)) for s in found.samples] == [
        (split, prior, 5, 5) for split in ("trained", "held_out") for prior in PRIORS
    ]
    assert {report[0]: report[1:] for report in told} == {
        f"{split}, prior {prior}": (12, 12) for split in ("trained", "held-out") for prior in PRIORS
    }
    config = replace(config, splits=("held_out",), priors=("none",))
    again, other = (evaluate(replace(config, seed=seed), bundle, judge) for seed in (0, 1))
    expected = found.results["held_out"]["priors"]["none"]
    assert again.results["held_out"]["priors"]["none"] == expected
    assert torch.equal(again.samples[0].pictures, found.samples[5].pictures)
    assert other.results["held_out"]["priors"]["none"] != expected


def test_guidance_is_swept_one_stage_at_a_time(shards, bundle, monkeypatch):
    """Each point is what an evaluation with that scale in its settings finds, at fewer prompts."""
    few = {"batch_size": 8, "prompts": 8, "candidates": 4, "neighbours": 1}
    config = config_for(shards, splits=("held_out",), priors=tuple(PRIORS), **few)
    scales = GuidanceScales(decoder=(1.0, 1.5, 4.0), prior=(2.0, 3.0), prompts=5)
    judge, told, counts = ClipJudge(bundle.clip), [], []
    real = evaluation.generate_with_embeddings

    def counted(bundle, captions, *, embeddings=None, **rest):
        counts.append((len(captions), embeddings is not None))
        return real(bundle, captions, embeddings=embeddings, **rest)

    monkeypatch.setattr(evaluation, "generate_with_embeddings", counted)
    swept = replace(config, guidance_scales=scales)
    found = evaluate(swept, bundle, judge, lambda *report: told.append(report)).results["held_out"]
    # 1.5, and 2 of the diffusion prior, are the scales of the main results, which are not made again; the
    # priors run again only where their own scale varies.
    decoder, prior = [(5, True)] * 2, [(5, False)]
    assert counts == [(8, False), *decoder, *prior, (8, False), *decoder, *prior * 2, (8, False), *decoder]
    for each in PRIORS:
        done = [report[1] for report in told if report[0].endswith(each)]
        assert done == sorted(done)
    assert {report[0]: report[1:] for report in told} == {
        "held-out, prior diffusion": (23, 23),
        "held-out, prior autoregressive": (28, 28),
        "held-out, prior none": (18, 18),
    }
    sweeps = found.pop("sweeps")
    plain = evaluate(config, bundle, judge).results["held_out"]
    assert found == plain
    assert json.loads(json.dumps(sweeps)) == sweeps and sweeps["prompts"] == 5
    assert {name: list(sweeps[name]) for name in ("decoder", "prior")} == {
        "decoder": list(PRIORS),
        "prior": ["diffusion", "autoregressive"],
    }
    for kind in ("decoder", "prior"):
        for points in sweeps[kind].values():
            assert [point["guidance_scale"] for point in points] == list(getattr(scales, kind))
            assert all(set(point) == {"guidance_scale", *sweeps["real"]} for point in points)
            assert all(point["background"]["of"] == 5 for point in points)
            assert len({point["cmmd"] for point in points}) == len(points)
    base, other = sweeps["prior"]["diffusion"]
    assert base["cmmd"] == sweeps["decoder"]["diffusion"][1]["cmmd"]
    only = {"priors": ("diffusion",), "guidance_scales": replace(scales, decoder=())}
    changed = replace(config, prior=replace(config.prior, guidance_scale=3.0), **only)
    again = evaluate(changed, bundle, judge).results["held_out"]["sweeps"]["prior"]["diffusion"]
    assert again[1]["clip_score"] == pytest.approx(other["clip_score"], abs=2e-5)
    assert again[0]["clip_score"] == pytest.approx(base["clip_score"], abs=2e-5)
    assert abs(other["clip_score"] - base["clip_score"]) > 2e-4


def test_all_that_is_needed_is_asked_for_before_anything_runs(shards, bundle, monkeypatch):
    def never(*_, **__):
        raise AssertionError("ran")

    monkeypatch.setattr(evaluation, "generate_with_embeddings", never)
    judge = ClipJudge(bundle.clip)
    with pytest.raises(ValueError, match="bundle 'tiny' has no diffusion prior"):
        evaluate(config_for(shards, priors=("none", "diffusion")), replace(bundle, prior=None), judge)
    with pytest.raises(
        ValueError, match="bundle 'tiny' has no autoregressive prior; choose another prior or"
    ):
        evaluate(config_for(shards, priors=tuple(PRIORS)), replace(bundle, ar_prior=None), judge)
    with pytest.raises(ValueError, match=r"found .* different prompts in .* expected 2016"):
        evaluate(config_for(shards, reference=2004), bundle, judge)  # enough of the trained pairs only


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"guidance_scales": GuidanceScales((1.0,), prompts=13)},
            "guidance_scales.prompts is 13; expected more than neighbours, 3, and at most prompts, 12",
        ),
        ({"candidates": 13}, "candidates is 13; expected 2 to the number of prompts, 12"),
        ({"neighbours": 12}, "neighbours is 12; expected 1 to less than prompts and reference, 12"),
        ({"priors": ("magic",)}, "prior 'magic' is not known; choose one of diffusion, autoregressive, none"),
        ({"splits": ()}, "splits is empty"),
        ({"samples": 0}, "samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_for("shards", **changes)


@pytest.mark.parametrize("scales", [(1.0, -1.0), (2.0, 1.0), (1.0, 1.0), (float("nan"),)])
def test_scales_that_are_no_sweep_are_refused(scales):
    with pytest.raises(ValueError, match=r"guidance_scales\.prior is .*; expected"):
        GuidanceScales(prior=scales)
