"""Prompts, generation and the whole evaluation, on made-up pictograms and a tiny bundle of random weights."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner
from unclip.cli import eval as eval_command
from unclip.cli.app import build_app
from unclip.core.embeddings.space import Embedding
from unclip.core.evaluation import evaluate as evaluation
from unclip.core.evaluation.config import EvaluationConfig, GuidanceScales
from unclip.core.evaluation.evaluate import evaluate
from unclip.core.evaluation.generate import (
    PRIORS,
    GenerateOptions,
    generate,
    generate_with_embeddings,
    picture_size,
)
from unclip.core.evaluation.prompts import draw_prompts, render_prompts
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.training.captions import COLOURS, STYLE_WORDS
from unclip.core.training.data import DataConfig, load_pictograms
from unclip.core.training.pictograms import Pictogram, write_shards

from .helpers_bundle import DECODED_SIZE, DIM, UPSAMPLED_SIZES, tiny_bundle, write_tiny_bundle

STYLES = ("noto", "twemoji")
FAST = {"prior": PriorOptions(steps=2, candidates=1), "decoder": DecodeOptions(steps=2)}


def pictogram(concept, style, colour, corner):
    x, y = corner
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
        f'<rect x="{2 + x}" y="{2 + y}" width="5" height="5" fill="rgb{colour}"/></svg>'
    )
    return Pictogram(f"{style}/{concept}", concept, style, "objects", ("thing", "stuff"), svg)


@pytest.fixture(scope="module")
def pictograms():
    """160 pictograms, each a square of its own colour and place."""
    places = list(itertools.product(range(8), range(8)))
    return [
        pictogram(
            f"square {index}", style, (index * 37 % 256, index * 101 % 256, 130 * number), places[index % 64]
        )
        for number, style in enumerate(STYLES)
        for index in range(80)
    ]


@pytest.fixture(scope="module")
def shards(pictograms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shards(pictograms, folder)
    return folder


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


def config_for(shards, **changes):
    values = {"prompts": 12, "candidates": 6, "reference": 16, "samples": 5, "batch_size": 12, **FAST}
    return EvaluationConfig("bundle", DataConfig(str(shards)), **{**values, **changes})


# ---------------------------------------------------------------------------------------------------- prompts


def test_prompts_name_style_concept_and_a_plain_background(pictograms):
    prompts = draw_prompts(pictograms, 300, seed=1)
    assert len({prompt.caption for prompt in prompts}) == 300
    triples = {(p.pictogram.concept, p.pictogram.style, p.background.name) for p in prompts}
    assert len(triples) == 300
    for prompt in prompts:
        assert prompt.pictogram.concept in prompt.caption
        assert any(words in prompt.caption for words in STYLE_WORDS[prompt.pictogram.style])
        assert prompt.background.name and prompt.background.name in prompt.caption
        assert prompt.background.top == prompt.background.bottom
    # every pictogram before any again
    assert len({prompt.pictogram.key for prompt in prompts[:160]}) == 160
    assert len({prompt.background.name for prompt in prompts}) > len(COLOURS)


def test_prompts_depend_on_the_seed_and_fewer_are_the_first_of_more(pictograms):
    prompts = draw_prompts(pictograms, 200, seed=1)
    assert draw_prompts(pictograms, 50, seed=1) == prompts[:50]
    assert draw_prompts(pictograms, 50, seed=2) != prompts[:50]


def test_too_many_prompts_are_refused(pictograms):
    assert len(draw_prompts(pictograms[:3], 63, seed=0)) == 63  # 3 pictograms on 21 backgrounds
    with pytest.raises(ValueError, match="found 63 different prompts in 3 pictograms, expected 64"):
        draw_prompts(pictograms[:3], 64, seed=0)


def test_true_pictures_show_the_pictogram_on_its_background(pictograms):
    prompts = draw_prompts(pictograms, 20, seed=0)
    renders = render_prompts(prompts, 16)
    assert renders.shape == (20, 3, 16, 16)
    for prompt, render in zip(prompts, renders, strict=True):
        background = torch.tensor(prompt.background.top) / 255
        assert torch.allclose(render[:, 0, 0], background)
        assert ((render - background[:, None, None]).abs().amax(dim=0) > 0.01).sum() == 25


# ------------------------------------------------------------------------------------------------- generation

CAPTIONS = ["a red car", "a dog on a blue background", "", "a tree", "two birds"]


@pytest.mark.parametrize("prior", list(PRIORS))
def test_a_picture_depends_on_its_caption_and_seed_and_not_on_the_batch(bundle, prior):
    options = GenerateOptions(prior, FAST["prior"], FAST["decoder"], batch_size=2)
    pictures = generate(bundle, CAPTIONS, seed=5, options=options)
    assert pictures.shape == (5, 3, DECODED_SIZE, DECODED_SIZE)
    together = generate(bundle, CAPTIONS, seed=5, options=replace(options, batch_size=5))
    assert (pictures - together).abs().max() < 1e-4
    alone = generate(bundle, CAPTIONS[3:4], seed=8, options=options)
    assert (alone - pictures[3:4]).abs().max() < 1e-4
    assert (generate(bundle, CAPTIONS[3:4], seed=9, options=options) - alone).abs().max() > 1e-2
    assert (generate(bundle, ["a house"], seed=8, options=options) - alone).abs().max() > 1e-3


def test_priors_give_different_pictures(bundle):
    options = GenerateOptions("diffusion", FAST["prior"], FAST["decoder"])
    found = [generate(bundle, CAPTIONS, seed=0, options=replace(options, prior=name)) for name in PRIORS]
    assert (found[0] - found[1]).abs().max() > 1e-2
    guided = replace(options, prior_options=replace(FAST["prior"], guidance_scale=6.0))
    assert (generate(bundle, CAPTIONS, seed=0, options=guided) - found[0]).abs().max() > 1e-3


def test_upsamplers_follow_and_progress_runs_to_the_number_of_pictures(bundle):
    told = []
    options = GenerateOptions("diffusion", FAST["prior"], FAST["decoder"], upsamplers=2, batch_size=2)
    pictures = generate(bundle, CAPTIONS[:3], seed=0, options=options, on_progress=told.append)
    assert pictures.shape[-1] == UPSAMPLED_SIZES[1] == picture_size(bundle, 2)
    assert told == sorted(told) and told[-1] == 3
    assert told[:2] == [2 * 1 / 8, 2 * 2 / 8]  # half and all of the prior's steps, the first of four stages


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"decoder": None}, {}, "bundle 'tiny' has no decoder"),
        ({"clip": None}, {}, "bundle 'tiny' has no CLIP model"),
        ({"prior": None}, {}, "bundle 'tiny' has no diffusion prior"),
        ({}, {"upsamplers": 3}, "upsamplers is 3; expected 0 to 2, as many as bundle 'tiny' has"),
    ],
)
def test_a_bundle_that_lacks_a_stage_is_named(bundle, change, options, message):
    with pytest.raises(ValueError, match=message):
        generate(
            replace(bundle, **change),
            CAPTIONS,
            seed=0,
            options=GenerateOptions("diffusion", FAST["prior"], FAST["decoder"], **options),
        )


def test_known_embeddings_take_the_place_of_the_prior(bundle):
    options = GenerateOptions("diffusion", FAST["prior"], FAST["decoder"], batch_size=2)
    pictures, embeddings = generate_with_embeddings(bundle, CAPTIONS, seed=5, options=options)
    assert torch.equal(generate(bundle, CAPTIONS, seed=5, options=options), pictures)
    few = replace(embeddings, vectors=embeddings.vectors[:3])
    other = replace(options, prior_options=replace(FAST["prior"], guidance_scale=9.0))
    again, same = generate_with_embeddings(bundle, CAPTIONS[:3], seed=5, options=other, embeddings=few)
    assert (again - pictures[:3]).abs().max() < 1e-4 and torch.equal(same.vectors, few.vectors)
    assert (generate(bundle, CAPTIONS[:3], seed=5, options=other) - again).abs().max() > 1e-3
    with pytest.raises(ValueError, match="embeddings: found 3, expected one for each of 5 captions"):
        generate_with_embeddings(bundle, CAPTIONS, seed=5, options=options, embeddings=few)


def test_no_prior_is_needed_where_none_is_used(bundle):
    options = GenerateOptions("none", decode_options=FAST["decoder"])
    assert len(generate(replace(bundle, prior=None), CAPTIONS[:1], seed=0, options=options)) == 1


# ------------------------------------------------------------------------------------------- the whole of it


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


def test_true_pictures_score_in_full_and_random_ones_by_chance(pictograms, shards, bundle, monkeypatch):
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
    judge = evaluation.ClipJudge(bundle.clip)
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
    judge, told, counts = evaluation.ClipJudge(bundle.clip), [], []
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
    assert again[1]["clip_score"] == pytest.approx(other["clip_score"], abs=1e-4)
    assert again[0]["clip_score"] == pytest.approx(base["clip_score"], abs=1e-4)
    assert abs(other["clip_score"] - base["clip_score"]) > 1e-3


def test_all_that_is_needed_is_asked_for_before_anything_runs(shards, bundle, monkeypatch):
    def never(*_, **__):
        raise AssertionError("ran")

    monkeypatch.setattr(evaluation, "generate_with_embeddings", never)
    judge = evaluation.ClipJudge(bundle.clip)
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


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command():
    app = build_app()
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["eval", *map(str, words)])


def write_config(folder, bundle, shards, extra="", table=""):
    path = folder / "quick.toml"
    path.write_text(
        f"bundle = '{bundle}'\nprompts = 12\ncandidates = 6\nreference = 20\nsamples = 4\n"
        f"precision = 'fp32'\n{extra}\n[data]\nshards = '{shards}'\n"
        f"[prior]\nsteps = 2\nguidance_scale = 3\n[decoder]\nsteps = 2\n{table}\n",
        encoding="utf-8",
    )
    return path


def test_the_command_writes_results_and_sheets(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    config = write_config(tmp_path, "nowhere", shards, "splits = ['trained']")
    result = command(config, "--output", tmp_path / "out", "--bundle", bundle, "--device", "cpu")
    assert result.exit_code == 0, result.output
    names = ["result.json", "sheet-trained-diffusion.png", "sheet-trained-none.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names  # and nothing half-written
    assert [line for line in result.stdout.splitlines() if line.startswith(str(tmp_path))] == [
        str(tmp_path / "out" / name) for name in names
    ]
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["settings"]["bundle"] == str(bundle)
    assert record["settings"]["prior"]["guidance_scale"] == 3.0
    assert (record["bundle"], record["device"], record["dtype"]) == ("tiny", "cpu", "float32")
    assert record["versions"]["torch"] == torch.__version__
    found = record["results"]["trained"]["priors"]["diffusion"]
    assert found["r_precision_clip"]["of"] == 12
    low, high = (100 * bound for bound in found["background"]["interval95"])
    assert f"({low:.1f}–{high:.1f})" in result.stdout
    with Image.open(tmp_path / "out" / "sheet-trained-none.png") as sheet:
        assert json.loads(sheet.text["unclip"])["settings"] == record["settings"]
        assert sheet.width > 2 * 128


def test_the_judge_can_be_another_clip_model(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    judge = write_tiny_bundle(tmp_path / "judge", upsamplers=0, seed=1, space_id="other/judge") / "clip"

    def measured(extra):
        config = write_config(tmp_path, bundle, shards, f"splits = ['trained']\npriors = ['none']\n{extra}")
        result = command(config, "--output", tmp_path / "out", "--device", "cpu", "--quiet")
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["results"][
            "trained"
        ]

    own, other = measured(""), measured(f"judge = '{judge}'")
    assert own["real"]["cmmd"] != other["real"]["cmmd"]
    assert own["real"]["r_precision_pixels"] == other["real"]["r_precision_pixels"]
    assert own["priors"]["none"]["background"] == other["priors"]["none"]["background"]


@pytest.mark.parametrize("scales", [(1.0, -1.0), (2.0, 1.0), (1.0, 1.0), (float("nan"),)])
def test_scales_that_are_no_sweep_are_refused(scales):
    with pytest.raises(ValueError, match=r"guidance_scales\.prior is .*; expected"):
        GuidanceScales(prior=scales)


def test_the_command_draws_curves(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    extra = "[guidance_scales]\ndecoder = [1, 1.5]\nprior = [1, 3]\nprompts = 6"
    config = write_config(tmp_path, bundle, shards, "splits = ['trained']\npriors = ['none']", extra)
    result = command(config, "--output", tmp_path / "out", "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "guidance-decoder.png",  # and no curves for the prior, of which there is none
        "result.json",
        "sheet-trained-none.png",
    ]
    assert str(tmp_path / "out" / "guidance-decoder.png") in result.stdout
    with Image.open(tmp_path / "out" / "guidance-decoder.png") as curves:
        assert json.loads(curves.text["unclip"])["settings"]["guidance_scales"]["decoder"] == [1.0, 1.5]


@pytest.mark.parametrize("module", ["matplotlib", "resvg_py"])
def test_the_command_names_a_package_that_is_missing(command, shards, tmp_path, monkeypatch, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "unclip.core.evaluation.plot", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without(module), *sys.meta_path])
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    extra = "[guidance_scales]\ndecoder = [1]\nprompts = 6"
    result = command(write_config(tmp_path, bundle, shards, "", extra), "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert f"this command needs the package {module}, which is not installed" in result.output
    assert not (tmp_path / "out").exists()


class Without:
    """Finds no module of a package."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, *_):
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


def test_the_command_asks_first_whether_it_can_write(command, shards, tmp_path):
    (tmp_path / "file").write_text("taken")
    result = command(write_config(tmp_path, "nowhere", shards), "--output", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot write into" in result.output and "nowhere" not in result.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "no config file"),
        ("wrong.toml", "bundle = 'x'\nprompt = 3\n[data]\nshards = 'y'", "unknown field prompt"),
        ("nowhere.toml", "bundle = 'not/here'\n[data]\nshards = 'y'", "not/here: does not exist"),
    ],
)
def test_the_command_says_what_is_wrong(command, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    result = command(tmp_path / name, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_the_shipped_config_is_valid():
    from pathlib import Path

    from unclip.core.config import config_from_dict
    from unclip.core.training.stages import read_toml

    shipped = Path(eval_command.__file__).parents[1] / "models" / "mini" / "configs" / "eval.toml"
    config = config_from_dict(EvaluationConfig, read_toml(shipped), str(shipped))
    assert (config.prompts, config.candidates, config.priors) == (200, 100, tuple(PRIORS))
    assert config.guidance_scales and config.decoder.guidance_scale in config.guidance_scales.decoder
