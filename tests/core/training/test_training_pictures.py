"""All stages train on pictures of one's own, from a folder and from shards, and priors on embeddings."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data import opening
from unclip.core.data.process import Process
from unclip.core.training import loop as loop_module
from unclip.core.training.loop import LoopReport
from unclip.core.training.stages import RECIPES, build_recipe, train_stage

from ...helpers.pictures import write_pictures, write_shards_of
from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip

STEPS = 3
OF_PICTURES = [stage for stage in RECIPES if stage != "classifier"]  # which knows the concepts of pictograms


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    write_shards_of(write_pictures(folder / "folder"), folder / "shards")
    found = stage_settings(folder / "shards", write_tiny_clip(folder))
    return {name: changed(each, "loop.steps", STEPS) for name, each in found.items()}


def losses(stage: str, settings: dict[str, Any], folder: Path, **data: object) -> list[float]:
    folder.mkdir()
    config = write_config(folder / "config.toml", {**settings, "data": data})
    train_stage(stage, config, folder / "run", cpu=True)
    return [row["loss"] for row in read_log(folder / "run" / "log.jsonl")]


@pytest.mark.parametrize("stage", OF_PICTURES)
def test_a_folder_and_its_shards_train_alike(stage: str, settings: dict, tmp_path: Path) -> None:
    shards = Path(settings[stage]["data"]["shards"])
    common = {"crop": "random"}
    folder = {"source": "folder", "path": str(shards.parent / "folder"), "workers": 0}
    first = losses(stage, settings[stage], tmp_path / "folder", **folder, **common)
    of_shards = {"source": "webdataset", "path": f"{shards}/*.tar", "workers": 2}
    assert losses(stage, settings[stage], tmp_path / "shards", **of_shards, **common) == first
    assert len(first) == STEPS


@pytest.mark.parametrize("stage", ["decoder", "upsampler"])
def test_a_run_on_pictures_goes_on_at_the_very_sample(stage: str, settings: dict, tmp_path: Path) -> None:
    data = {"source": "webdataset", "path": settings[stage]["data"]["shards"], "crop": "random", "workers": 2}
    long = {**changed(settings[stage], "loop.steps", 7), "data": data}  # 84 rows: into the second epoch
    config = write_config(tmp_path / "c.toml", long)
    train_stage(stage, config, tmp_path / "whole", cpu=True)
    train_stage(stage, config, tmp_path / "parts", steps=3, cpu=True)
    train_stage(stage, config, tmp_path / "parts", cpu=True)
    whole, parts = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts"))
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]
    assert len({row["loss"] for row in whole}) == 7


def test_damaged_pictures_are_counted_and_named(
    settings: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "folder", 20)
    for number in (3, 8):
        (folder / f"{number:04}.png").write_text("no picture")
    data = {"source": "folder", "path": str(folder), "workers": 1}
    losses("decoder", settings["decoder"], tmp_path / "run", **data)
    assert "left out: 0003: no picture that can be read (JPEG" in caplog.text
    assert caplog.text.count("left out: 0008") == 1
    assert "2 pictures that could not be used were left out" in caplog.text


def test_the_unusable_of_all_processes_are_counted(
    settings: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = loop_module.together

    def with_another(process: Process, values: list[Any]) -> list[Any]:
        found = gather(process, values)
        return [*found, "0003", "of-another"] if found and isinstance(found[0], str) else found

    monkeypatch.setattr(loop_module, "together", with_another)
    folder = write_pictures(tmp_path / "folder", 20)
    (folder / "0003.png").write_text("no picture")
    data = {"source": "folder", "path": str(folder), "workers": 0}
    losses("decoder", settings["decoder"], tmp_path / "run", **data)
    assert "2 pictures that could not be used were left out" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_used_are_told_in_a_line(settings: dict, tmp_path: Path, workers: int) -> None:
    folder = write_pictures(tmp_path / "folder", 20)
    for path in folder.glob("*.png"):
        path.write_text("no picture")
    data = {"source": "folder", "path": str(folder), "workers": workers}
    others = set(multiprocessing.active_children())  # that a test before has left
    with pytest.raises(ValueError, match=r"^of \d+ rows of the data none can be used; [^\n]*$") as caught:
        losses("decoder", settings["decoder"], tmp_path / "run", **data)
    # Python would wait for them at its end, for as long as this traceback holds what they hang on.
    assert caught.tb and set(multiprocessing.active_children()) <= others


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX")
def test_a_worker_that_the_system_ends_is_told_of_and_the_run_goes_on(settings: dict, tmp_path: Path) -> None:
    shards = settings["decoder"]["data"]["shards"]
    data = {"source": "webdataset", "path": shards, "crop": "random", "workers": 1}
    many = changed(changed(settings["decoder"], "loop.steps", 100), "loop.checkpoint_every", 2)
    config = write_config(tmp_path / "c.toml", {**many, "data": data})
    others = set(multiprocessing.active_children())

    def kill(report: LoopReport) -> None:
        if report.step == 3:
            (worker,) = set(multiprocessing.active_children()) - others
            os.kill(worker.pid or 0, signal.SIGKILL)

    told = r"c\.toml: a process that reads data was ended .* (killed by signal|exited unexpectedly)"
    with pytest.raises(ValueError, match=told) as caught:
        train_stage("decoder", config, tmp_path / "run", cpu=True, on_step=kill)
    assert "loop.accumulate" in str(caught.value) and "\n" not in str(caught.value)
    train_stage("decoder", config, tmp_path / "run", cpu=True, steps=5)
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4, 5]


def test_consistency_is_of_pictograms(settings: dict) -> None:
    data = {"source": "webdataset", "path": settings["clip"]["data"]["shards"]}
    teacher = {"teacher": settings["prior"]["clip"]}
    with pytest.raises(ValueError, match=r"^consistency is of pictograms over backgrounds, but data\.source"):
        build_recipe("clip", {**settings["clip"], "data": data, "consistency": teacher}, "test.toml")


def test_a_classifier_is_of_pictograms(settings: dict) -> None:
    data = {"source": "folder", "path": settings["clip"]["data"]["shards"]}
    with pytest.raises(ValueError, match=r"^data\.source is 'folder', but only pictograms serve here"):
        build_recipe("classifier", {**settings["classifier"], "data": data}, "test.toml")


@pytest.mark.parametrize("stage", ["clip", "decoder", "upsampler"])
def test_what_is_learnt_from_pictures_takes_no_embeddings(settings: dict, stage: str) -> None:
    data = {"source": "embeddings", "path": "somewhere"}
    message = "data.source is 'embeddings', expected 'folder' or 'webdataset': pictures"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_recipe(stage, {**settings[stage], "data": data}, "test.toml")


def test_the_command_line_alone_allows_commands(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(opening.ALLOW_PIPE, "")
    shard = Path(settings["prior"]["data"]["shards"]) / "00000.tar"
    data = {"source": "webdataset", "path": f"pipe:cat {shard}", "workers": 0}
    config = write_config(tmp_path / "prior.toml", {**settings["prior"], "data": data})
    command = ["train", "prior", str(config), "-o", str(tmp_path / "run"), "--cpu"]
    refused = CliRunner().invoke(build_app(), command)
    assert refused.exit_code == 1
    assert "unless you allow it: --allow-pipe" in " ".join(refused.output.split())
    assert not (tmp_path / "run").exists()
    assert CliRunner().invoke(build_app(), [*command, "--allow-pipe"]).exit_code == 0
    assert (tmp_path / "run" / "prior.safetensors").exists()
