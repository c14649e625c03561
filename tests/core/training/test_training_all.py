"""``unclip train-all``: a system from nothing by one file, resumable, as a bundle that loads and paints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import unclip
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.api import generate_image, load_bundle
from unclip.core.config import config_from_dict
from unclip.core.formats.native.classifier import load_classifier
from unclip.core.training import all_stages
from unclip.core.training.all_stages import read_recipe, stage_of
from unclip.core.training.recipes.clip import ClipTraining
from unclip.core.training.stages import build_recipe

from ...helpers.stages import changed, read_log, stage_settings, write_config
from ...helpers.training import write_tiny_shards

MINI = Path(unclip.__file__).parent / "models" / "mini"
NAMES = ("clip", "prior", "ar-prior", "decoder", "upsampler-32", "classifier")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """All stages in miniature, with a hundred times the steps that are trained; one extends a config file."""
    write_tiny_shards(tmp_path / "shards")
    settings = stage_settings(tmp_path / "shards", tmp_path / "none")
    stages = {}
    for name in NAMES:
        each = changed(changed(settings[stage_of(name)], "loop.steps", 200), "loop.checkpoint_every", 100)
        each.pop("clip", None)
        each.pop("data")
        if name in ("prior", "ar-prior", "decoder"):  # which follow this CLIP, not the tiny bundle's
            width = {"prior": "model.dim", "ar-prior": "model.dim"}.get(name, "model.conditioning.clip_dim")
            text = {"prior": "model.text_dim", "ar-prior": "model.text_dim"}
            each = changed(each, width, 16)
            each = changed(each, text.get(name, "model.conditioning.text_dim"), 32)
        stages[name] = each
    write_config(tmp_path / "decoder.toml", {**stages["decoder"], "loop": {**stages["decoder"]["loop"]}})
    stages["decoder"] = {"extends": "decoder.toml", "drop_text": 0.25}
    content = {"name": "tiny", "data": {"white": 0.3}, "stages": stages}
    return write_config(tmp_path / "recipe.toml", content)


def train(recipe: Path, output: Path, *options: object) -> tuple[int, str]:
    common = ["train-all", recipe, "-o", output, "--data", recipe.parent / "shards", "--cpu"]
    result = CliRunner().invoke(build_app(), [*map(str, common), *map(str, options)])
    return result.exit_code, " ".join(result.output.split())


def test_a_system_is_trained_from_nothing_and_loads(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, output = train(recipe, folder, "--share", 0.01)
    assert code == 0, output
    assert output.endswith(f" {folder / 'bundle'}")
    for name in NAMES:
        assert [row["step"] for row in read_log(folder / "runs" / name / "log.jsonl")] == [1, 2]
    assert all_stages.judge_of(folder) == folder / "runs" / "classifier" / "classifier.safetensors"
    assert load_classifier(folder / "runs" / "classifier" / "classifier.safetensors").config.image_size == 16
    assert all_stages.judge_of(tmp_path) is None
    bundle = load_bundle(folder / "bundle", dtype=torch.float32)
    assert (bundle.name, bundle.prior is None, bundle.ar_prior is None) == ("tiny", False, False)
    assert bundle.decoder.space == bundle.prior.space == bundle.clip.space
    picture = generate_image(bundle, "a red apple", size=32)
    assert picture.shape == (1, 3, 32, 32)
    assert picture.isfinite().all()


def test_what_was_stopped_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(recipe, tmp_path / "whole", "--share", 0.01)[0] == 0
    run = all_stages.train_settings
    trained: list[str] = []

    def stopped(stage: str, *arguments: object, **options: object) -> bool:
        trained.append(stage)
        return stage != "decoder" and run(stage, *arguments, **options)

    monkeypatch.setattr(all_stages, "train_settings", stopped)
    assert train(recipe, tmp_path / "parts", "--share", 0.01)[0] == 143
    assert trained == ["clip", "prior", "ar-prior", "decoder"]
    assert not (tmp_path / "parts" / "bundle").exists()
    monkeypatch.setattr(all_stages, "train_settings", run)
    assert train(recipe, tmp_path / "parts", "--share", 0.01)[0] == 0
    names = sorted(path.name for path in (tmp_path / "whole" / "bundle").iterdir())
    for name in names:
        files = [(tmp_path / folder / "bundle" / name).read_bytes() for folder in ("whole", "parts")]
        assert files[0] == files[1], name
    assert len(names) == 6


def test_stages_can_be_trained_side_by_side(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, tmp_path / "whole", "--share", 0.01)[0] == 0
    folder = tmp_path / "parts"
    for chosen in (["clip"], ["decoder", "upsampler-32"], ["ar-prior"], ["classifier"]):
        options = [option for name in chosen for option in ("--stage", name)]
        code, output = train(recipe, folder, "--share", 0.01, *options)
        assert (code, output.split()[-1]) == (0, str(folder / "runs")), output
    assert not (folder / "bundle").exists()
    code, output = train(recipe, folder, "--share", 0.01, "--stage", "prior")
    assert (code, output.split()[-1]) == (0, str(folder / "bundle")), output
    for path in (tmp_path / "whole" / "bundle").iterdir():
        assert path.read_bytes() == (folder / "bundle" / path.name).read_bytes(), path.name


def test_stages_that_cannot_be_trained_yet_or_at_all_are_named(recipe: Path, tmp_path: Path) -> None:
    code, output = train(recipe, tmp_path / "out", "--stage", "prior")
    assert (code, "clip holds no finished stage" in output) == (1, True), output
    code, output = train(recipe, tmp_path / "out", "--stage", "painter")
    assert (code, "has no stage painter: choose from clip, prior" in output) == (1, True), output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": {"painter": {}}}, "stages.painter is no table of a stage; names begin with clip, prior"),
        ({"stages": {"clip": 3}}, "stages.clip is no table of a stage"),
        ({"stages": {"prior": {}}}, "stages has no clip, which the others learn from"),
        ({"stages": {"clip": {"extends": 3}}}, "stages.clip.extends is 3, expected the name of a config"),
        (
            {"stages": {"clip": {"loop": {"start_from": "x"}}}},
            "stages.clip.loop.start_from: the stages of a recipe begin from nothing; take it out",
        ),
        ({"stages": {"clip": {"extends": "none.toml"}}}, "no config file .*none.toml"),
    ],
)
def test_recipes_that_do_not_fit_are_named(tmp_path: Path, change: dict, message: str) -> None:
    path = write_config(tmp_path / "r.toml", {"name": "x", "data": {}, **change})
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_another_share_is_refused_unless_it_is_accepted(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, tmp_path / "out", "--share", 0.01, "--stage", "clip")[0] == 0
    code, output = train(recipe, tmp_path / "out", "--share", 0.02, "--stage", "clip")
    assert (code, "go on with --accept-changes" in output) == (1, True), output
    code, output = train(recipe, tmp_path / "out", "--share", 0.02, "--stage", "clip", "--accept-changes")
    assert code == 0, output
    assert [row["step"] for row in read_log(tmp_path / "out" / "runs" / "clip" / "log.jsonl")] == [1, 2, 3, 4]


def test_a_share_out_of_range_is_named(recipe: Path, tmp_path: Path) -> None:
    code, output = train(recipe, tmp_path / "out", "--share", 0)
    assert code == 2
    assert "--share: found 0.0, expected a number above 0 and up to 1" in output


@pytest.mark.parametrize("file", sorted(path.name for path in MINI.glob("*.toml")))
def test_the_recipes_of_mini_describe_stages_that_fit_each_other(file: str) -> None:
    found = read_recipe(MINI / file)
    names = ["clip", "prior", "ar-prior", "decoder", "upsampler-256", "upsampler-1024", "classifier"]
    assert list(found.stages) == names
    assert (MINI / str(found.evaluation)).is_file()
    clip = config_from_dict(ClipTraining, {**found.stages["clip"], "data": {"shards": "none"}}, "recipe")
    for name, settings in found.stages.items():
        assert settings["loop"]["optimizer"] == "muon"
        assert "start_from" not in settings["loop"]
        assert ("augment" in settings["data"]) == (stage_of(name) != "upsampler")
        model = settings.get("model", {})
        dims = (model.get("dim"), model.get("conditioning", {}).get("clip_dim"))
        assert {dim for dim in dims if dim is not None} <= {clip.model.embed_dim}
        ready = {**settings, "data": {**settings["data"], "shards": "nowhere"}}
        if stage_of(name) in ("prior", "ar-prior", "decoder"):
            ready["clip"] = "nowhere.safetensors"
        with pytest.raises(ValueError, match=r"no \.tar shards in|no CLIP model at"):
            build_recipe(stage_of(name), ready, file)
