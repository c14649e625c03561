"""Sampling settings that a bundle asks for: read from its description, kept, used, refused where wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import unclip
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.formats.abilities import read_abilities
from unclip.core.formats.load import load_any_bundle
from unclip.core.formats.native.checkpoints import save_bundle
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.generate import GenerateOptions, default_options
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.stages import Defaults

from ...helpers import karlo
from ...helpers.bundle import write_tiny_bundle

SAID = {"decoder": {"sampler": "dpmpp_2m", "steps": 3, "guidance_start": 0.5}, "prior": {"steps": 2}}
READ = GenerateOptions(
    prior_options=PriorOptions(steps=2),
    decode_options=DecodeOptions(sampler="dpmpp_2m", steps=3, guidance_interval=(0.0, 0.5)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def say(folder: Path, said: Any, name: str = "bundle.json") -> Path:
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, "defaults": said}))
    return path


def test_a_bundle_asks_for_nothing_unless_it_says_so(folder: Path) -> None:
    assert "defaults" not in (folder / "bundle.json").read_text()
    bundle = load_any_bundle(folder)
    assert bundle.defaults == read_abilities(folder).defaults == Defaults()
    assert default_options(bundle) == GenerateOptions()


def test_what_it_asks_for_is_read_used_and_saved(folder: Path, tmp_path: Path) -> None:
    plain = load_any_bundle(folder)
    say(folder, SAID)
    bundle = load_any_bundle(folder)
    assert bundle.defaults == read_abilities(folder).defaults == Defaults(SAID, str(folder / "bundle.json"))
    assert default_options(bundle) == READ
    assert load_any_bundle(save_bundle(bundle, tmp_path / "copy")).defaults.tables == SAID
    size = bundle.decoder.picture_size
    pictures = [unclip.generate_image(each, "a red fox", size=size) for each in (plain, bundle)]
    asked = unclip.generate_image(plain, "a red fox", size=size, options=READ)
    assert not torch.equal(*pictures)
    assert torch.equal(pictures[1], asked)
    photo = torch.rand(1, 3, size, size)
    assert torch.equal(unclip.vary(bundle, photo), unclip.vary(plain, photo, options=READ.decode_options))
    frames = [unclip.interpolate(bundle, photo, "a fox", frames=2)]
    frames += [unclip.interpolate(plain, photo, "a fox", frames=2, options=READ)]
    assert torch.equal(*frames)


def test_a_model_of_another_layout_asks_in_a_file_of_ours(tmp_path: Path) -> None:
    published = karlo.save_as_published(karlo.tiny_pipeline(), tmp_path / "karlo")
    say(published, {"decoder": {"guidance_scale": 8.0}}, "unclip.json")
    for place in (published, tmp_path):  # the second as a folder of such models
        assert load_any_bundle(place).defaults.tables == {"decoder": {"guidance_scale": 8.0}}
        assert read_abilities(place).defaults.tables == {"decoder": {"guidance_scale": 8.0}}


@pytest.mark.parametrize(
    "said", [[1], {"painter": {}}, {"decoder": 8}, {"decoder": {"steps": [8]}}, {"prior": {"steps": None}}]
)
def test_what_is_no_table_of_settings_is_refused_by_the_name_of_its_file(folder: Path, said: Any) -> None:
    path = say(folder, said)
    for read in (load_any_bundle, read_abilities):
        with pytest.raises(
            ValueError, match="expected a table of sampling settings for some of prior"
        ) as error:
            read(folder)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"decoder": {"stepps": 8}}, "defaults.decoder has 'stepps', expected some of steps, guidance_scale"),
        ({"decoder": {"seed": 8}}, "defaults.decoder has 'seed', expected some of steps"),
        ({"decoder": {"steps": 0}}, "defaults.decoder: steps is 0, expected a whole number from 1 to 1000"),
        ({"decoder": {"steps": "8"}}, "defaults.decoder: steps is '8', expected a whole number from 1"),
        ({"decoder": {"steps": 8.5}}, "defaults.decoder: steps is 8.5, expected a whole number"),
        ({"decoder": {"steps": True}}, "defaults.decoder: steps is True, expected a whole number"),
        (
            {"prior": {"guidance_scale": 10**400}},
            "defaults.prior: guidance_scale is 1000.*, expected a number",
        ),
        (
            {"prior": {"guidance_scale": float("nan")}},
            "defaults.prior: guidance_scale is nan, expected a number",
        ),
        ({"prior": {"guidance_scale": 31}}, "expected a number from 0.0 to 30.0"),
        ({"upsampler": {"sampler": "magic"}}, "defaults.upsampler: sampler is 'magic', expected one of ddpm"),
    ],
)
def test_settings_that_there_are_not_are_named_with_their_file(
    folder: Path, said: dict, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = say(folder, said)
    with pytest.raises(ValueError, match=f"bundle.json: .*{problem}"):
        default_options(load_any_bundle(folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a fox")
    for words in (
        ["generate", "a fox", "--bundle", folder, "-o", "fox.png"],
        ["batch", "captions.txt", "--bundle", folder, "-o", "made"],
        ["inspect", folder],
    ):
        result = CliRunner().invoke(build_app(), [str(word) for word in words])
        said_so = " ".join(result.stderr.split())
        assert (result.exit_code, path.name in said_so, "Traceback" in said_so) == (1, True, False), said_so
    assert not (tmp_path / "fox.png").exists() and not (tmp_path / "made").exists()


def test_a_batch_is_of_one_kind_of_defaults(folder: Path, tmp_path: Path) -> None:
    say(folder, {"decoder": {"steps": 2}, "prior": {"steps": 2, "candidates": 1}})
    (tmp_path / "captions.txt").write_text("a fox")
    words = ["batch", tmp_path / "captions.txt", "--bundle", folder, "-o", tmp_path / "made"]
    assert CliRunner().invoke(build_app(), [str(word) for word in words]).exit_code == 0
    say(folder, {"decoder": {"steps": 3}})
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    assert result.exit_code == 1 and "defaults was" in " ".join(result.stderr.split())


def test_mini_asks_for_what_was_measured() -> None:
    options = default_options(unclip.load_bundle())
    assert (options.decode_options.sampler, options.decode_options.steps) == ("dpmpp_2m", 8)
