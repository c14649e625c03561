"""Sheets of fixed captions while a stage trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from unclip.core.formats.native.checkpoints import save_stage
from unclip.core.training.ema import ExponentialMovingAverage
from unclip.core.training.loop import train
from unclip.core.training.sheet import Sheets, weights_replaced
from unclip.core.training.sheet_settings import SheetConfig
from unclip.core.training.stages import build_recipe, train_stage

from ...helpers.bundle import tiny_bundle
from ...helpers.regression import assert_equal
from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip
from ...helpers.training import write_tiny_shards

CAPTIONS = ["a red apple", "a green leaf", "a blue car"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A prior and a decoder of the tiny bundle."""
    folder = tmp_path_factory.mktemp("files")
    bundle = tiny_bundle(upsamplers=0)
    save_stage(bundle.prior, folder / "prior.safetensors")
    save_stage(bundle.decoder, folder / "decoder.safetensors")
    found = {name: str(folder / f"{name}.safetensors") for name in ("prior", "decoder")}
    return {**found, "clip": str(write_tiny_clip(folder))}


@pytest.fixture(scope="module")
def settings(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found = stage_settings(write_tiny_shards(tmp_path_factory.mktemp("shards")), Path(files["clip"]))
    return {name: changed(each, "loop.steps", 4) for name, each in found.items()}


def with_sheet(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return changed(settings, "loop.sheet", {"every": 2, "captions": CAPTIONS, "steps": 2, **more})


def sheets(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "sheets").iterdir())


NEEDED = {
    "decoder": (),
    "prior": ("decoder",),
    "ar-prior": ("decoder",),
    "upsampler": ("clip", "decoder", "prior"),
}


@pytest.mark.parametrize("stage", NEEDED)
def test_a_stage_paints_its_captions_and_learns_as_without(
    stage: str, settings: dict, files: dict, tmp_path: Path
) -> None:
    plain = write_config(tmp_path / "plain.toml", settings[stage])
    train_stage(stage, plain, tmp_path / "plain", cpu=True)
    painted = with_sheet(settings[stage], **{name: files[name] for name in NEEDED[stage]})
    config = write_config(tmp_path / "painted.toml", painted)
    train_stage(stage, config, tmp_path / "painted", cpu=True)
    assert sheets(tmp_path / "painted") == ["00000002.png", "00000004.png"]
    pictures = [Image.open(tmp_path / "painted" / "sheets" / name) for name in sheets(tmp_path / "painted")]
    assert pictures[0].size == pictures[1].size
    assert pictures[0].tobytes() != pictures[1].tobytes(), "the stage has learnt in between"
    rows = [read_log(tmp_path / name / "log.jsonl") for name in ("plain", "painted")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("plain", "painted")
    ]
    assert_equal(states[0]["network"], states[1]["network"])


def test_a_sheet_shows_the_averaged_weights(settings: dict, tmp_path: Path) -> None:
    recipe = build_recipe("decoder", settings["decoder"], "test.toml")[1]
    ema = ExponentialMovingAverage(recipe.network, 0.5)
    own = {name: value.detach().clone() for name, value in recipe.network.named_parameters()}
    for value in ema.shadow.values():
        value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    with weights_replaced(recipe.network, ema.averaged_state(recipe.network)):
        assert_equal(dict(recipe.network.named_parameters()), ema.shadow)
        assert not recipe.network.training
    assert_equal(dict(recipe.network.named_parameters()), own)
    assert recipe.network.training


def test_a_prior_gives_other_pictures_than_the_captions_embeddings(
    settings: dict, files: dict, tmp_path: Path
) -> None:
    recipe = build_recipe("decoder", settings["decoder"], "test.toml")[1]
    with torch.no_grad():  # what starts at zero ignores what it is given
        for value in recipe.network.parameters():
            value.copy_(
                0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
            )
    found = []
    for number, more in enumerate(({}, {"prior": files["prior"]})):
        config = SheetConfig(1, tuple(CAPTIONS), steps=2, **more)
        painter = Sheets(config, recipe.stage(), recipe.clip_stage)
        pictures = [painter.paint(recipe.stage(), tmp_path, number, torch.device("cpu")) for _ in range(2)]
        assert torch.equal(*pictures), "always the same noise"
        assert pictures[0].shape == (3, 3, 16, 16)
        found.append(pictures[0])
    assert not torch.equal(*found)


def test_a_run_that_goes_on_may_paint_others(settings: dict, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.toml", with_sheet(settings["decoder"]))
    train_stage("decoder", config, tmp_path / "run", steps=2, cpu=True)
    write_config(tmp_path / "c.toml", with_sheet(settings["decoder"], every=1, captions=["a black crow"]))
    train_stage("decoder", config, tmp_path / "run", cpu=True)
    assert sheets(tmp_path / "run") == ["00000002.png", "00000003.png", "00000004.png"]
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["config"]["loop"]["sheet"]["captions"] == CAPTIONS, "as the run was begun"


def test_a_stage_in_several_files_goes_by_the_name_of_one(settings: dict, tmp_path: Path) -> None:
    bundle = tiny_bundle(upsamplers=0)
    whole_file = save_stage(bundle.clip, tmp_path / "whole.safetensors")
    for name, stage in (("clip", bundle.clip), ("prior", bundle.prior)):
        save_stage(stage, tmp_path / f"{name}.safetensors", max_shard_bytes=20_000)
        assert not (tmp_path / f"{name}.safetensors").exists()
    prior = str(tmp_path / "prior.safetensors")
    whole, parts = (
        build_recipe("decoder", changed(settings["decoder"], "clip", clip), "test.toml")[1]
        for clip in (str(whole_file), str(tmp_path / "clip.safetensors"))
    )
    assert_equal(whole.clip_stage.network.state_dict(), parts.clip_stage.network.state_dict())
    config = SheetConfig(1, tuple(CAPTIONS), steps=2, prior=prior)
    assert Sheets(config, parts.stage(), parts.clip_stage)._bundle.prior is not None


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ("clip", {}, "loop.sheet: a CLIP model makes no pictures"),
        ("prior", {}, "pictures of this stage need decoder too: name the file in loop.sheet.decoder"),
        ("upsampler", {}, "need clip and decoder too: name the files in loop.sheet.clip, loop.sheet.decoder"),
        ("decoder", {"captions": ["a", " "]}, "loop.sheet.captions: expected at least one caption"),
        ("decoder", {"every": 0}, "loop.sheet.every is 0, expected more than 0"),
        ("decoder", {"prior": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_sheets_that_cannot_be_painted_are_named(
    stage: str, more: dict, message: str, settings: dict, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        config, recipe = build_recipe(stage, with_sheet(settings[stage], **more), "test.toml")
        train(recipe, config.loop, tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()
