"""What a run keeps, and what it may go on with: configs, checkpoints, validation, trackers, kills."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.config import to_json
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.training.fingerprint import SAMPLE, fingerprint
from unclip.core.training.recompute import recompute_blocks
from unclip.core.training.run_folder import changes, with_defaults
from unclip.core.training.stages import RECIPES, build_recipe, train_settings, train_stage

from ...helpers.distributed import killed_on_forks
from ...helpers.pictures import write_pictures
from ...helpers.regression import assert_equal, loop_settings, run, weights
from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip
from ...helpers.training import write_tiny_shards


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


# --- the config of a run ---


def test_a_run_keeps_what_it_was_made_with(settings: dict, tmp_path: Path) -> None:
    config = write_config(tmp_path / "prior.toml", changed(settings["prior"], "loop.steps", 1))
    train_stage("prior", config, tmp_path / "run", cpu=True)
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["stage"] == "prior"
    assert kept["config"]["loop"]["learning_rate"] == settings["prior"]["loop"]["learning_rate"]
    assert kept["config"]["drop_text"] == 0.1, "with defaults"
    assert {"python", "torch", "accelerate"} <= kept["versions"].keys()
    assert kept["git"] is None or len(kept["git"].rstrip("+")) == 40


def test_a_changed_config_is_refused_and_said(settings: dict, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    base = changed(settings["prior"], "loop.steps", 4)
    write_config(tmp_path / "c.toml", base)
    train_stage("prior", tmp_path / "c.toml", folder, steps=2, cpu=True)
    other = changed(changed(base, "loop.seed", 3), "drop_text", 0.25)
    write_config(tmp_path / "c.toml", other)
    command = ["train", "prior", str(tmp_path / "c.toml"), "-o", str(folder), "--cpu"]
    refused = CliRunner().invoke(build_app(), command)
    assert refused.exit_code == 1
    said = " ".join(refused.output.split())
    assert "drop_text was 0.1, is 0.25; loop.seed was 0, is 3. Train into another folder" in said
    assert [row["step"] for row in read_log(folder / "log.jsonl")] == [1, 2]
    with pytest.raises(ValueError, match="is a run of the stage prior, not ar-prior: choose another folder"):
        write_config(tmp_path / "ar.toml", settings["ar-prior"])
        train_stage("ar-prior", tmp_path / "ar.toml", folder, cpu=True)
    free = changed(changed(base, "loop.checkpoint_every", 1), "loop.keep_checkpoints", 2)
    write_config(tmp_path / "c.toml", free)
    train_stage("prior", tmp_path / "c.toml", folder, steps=3, cpu=True)
    write_config(tmp_path / "c.toml", other)
    accepted = CliRunner().invoke(build_app(), [*command, "--accept-changes"])
    assert accepted.exit_code == 0, accepted.output
    assert json.loads((folder / "run.json").read_text())["config"]["loop"]["seed"] == 3
    assert [row["step"] for row in read_log(folder / "log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accepted_changes_of_the_optimizer_are_made(settings: dict, tmp_path: Path, optimizer: str) -> None:
    """A checkpoint brings the state of the optimizer, and its settings come from the config."""
    base = changed(changed(settings["prior"], "loop.steps", 4), "loop.optimizer", optimizer)
    ends = {}
    for name, asked in {"same": {}, "decay": {"weight_decay": 5.0}, "beta2": {"beta2": 0.5}}.items():
        folder, other = tmp_path / name, base
        train_settings("prior", changed(base, "loop.stop_at", 2), "test", folder, cpu=True)
        for key, value in asked.items():
            other = changed(other, f"loop.{key}", value)
        train_settings("prior", other, "test", folder, cpu=True, accept_changes=True)
        ends[name] = load_stage(folder / "prior.safetensors").network.state_dict()
    for name in ("decay", "beta2"):
        moved = [key for key in ends[name] if not torch.equal(ends[name][key], ends["same"][key])]
        assert moved, f"{name} was not taken over"


def test_changes_that_do_not_fit_leave_the_run_as_it_was(settings: dict, tmp_path: Path) -> None:
    config, folder = changed(settings["prior"], "loop.steps", 3), tmp_path / "run"
    train_settings("prior", changed(config, "loop.stop_at", 1), "c.toml", folder, cpu=True)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match="is the checkpoint of another network"):
        train_settings(
            "prior", changed(config, "model.width", 64), "c.toml", folder, cpu=True, accept_changes=True
        )
    assert (folder / "run.json").read_bytes() == before
    assert train_settings("prior", config, "c.toml", folder, cpu=True)


def test_another_model_in_the_place_of_the_one_is_refused(settings: dict, tmp_path: Path) -> None:
    clip, folder = write_tiny_clip(tmp_path), tmp_path / "run"
    config = changed(changed(settings["prior"], "loop.steps", 3), "clip", str(clip))

    def go_on(steps: int, **options: bool) -> bool:
        return train_settings("prior", config, "c.toml", folder, steps=steps, cpu=True, **options)

    go_on(1)
    stage = load_stage(clip, expect="clip")
    save_stage(stage, clip)  # with the same weights
    assert go_on(2)
    kept = (folder / "run.json").read_text()
    with torch.no_grad():
        stage.network.clip.logit_scale.add_(1)
    save_stage(stage, clip)
    with pytest.raises(ValueError, match=r"has changed since .* was begun: clip is another model\. Train"):
        go_on(3)
    old = {name: value for name, value in json.loads(kept).items() if name != "models"}
    (folder / "run.json").write_text(json.dumps(old))
    assert go_on(3), "a run that did not keep them"
    (folder / "run.json").write_text(kept)
    assert go_on(3, accept_changes=True)
    assert json.loads((folder / "run.json").read_text())["models"] != json.loads(kept)["models"]


def test_fingerprints_are_of_all_weights(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    large = tmp_path / "model" / "large.bin"
    large.write_bytes(bytes(100 * SAMPLE))
    first = fingerprint(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert fingerprint(tmp_path / "model") == first
    large.write_bytes(bytes(100 * SAMPLE - 1) + b"x")
    assert fingerprint(tmp_path / "model") != first
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}))
    found = []
    for header, weight in ((b"{}", b"a"), (b"{  }", b"a"), (b"{}", b"b")):
        for name in ("x-1", "x-2"):
            path = tmp_path / f"{name}.safetensors"
            path.write_bytes(len(header).to_bytes(8, "little") + header + weight)
        found.append(fingerprint(index))
    assert found[0] == found[1] != found[2]


@dataclass(frozen=True)
class Inner:
    a: int
    new: float = 0.75


@dataclass(frozen=True)
class Outer:
    inner: Inner
    also: Inner | None = None
    many: tuple[int, ...] = (1, 2)


def test_fields_that_a_newer_version_has_change_nothing() -> None:
    def found(before: dict[str, Any], config: Outer) -> list[str]:
        return changes(with_defaults(before, config), to_json(config))

    assert found({"inner": {"a": 1}}, Outer(Inner(1))) == []
    assert found({"inner": {"a": 1}}, Outer(Inner(1, new=0.5))) == ["inner.new was 0.75, is 0.5"]
    assert found({"inner": {"a": 1}}, Outer(Inner(1), Inner(2))) == [
        "also.a was not set, is 2",
        "also.new was not set, is 0.75",
    ]
    assert found({"inner": {"a": 1}, "also": {"a": 2}}, Outer(Inner(1), Inner(2))) == []
    assert found({"inner": {"a": 1}}, Outer(Inner(1), many=())) == ["many was [1, 2], is []"]
    assert changes({"a": {"b": [1]}}, {"a": {"b": [2]}}) == ["a.b was [1], is [2]"]
    assert changes({"loop": {"log_every": 1}}, {"loop": {"log_every": 2}}) == []


# --- checkpoints ---


def test_older_checkpoints_stay_as_many_as_asked(tmp_path: Path) -> None:
    run(tmp_path, loop_settings(checkpoint_every=2, keep_checkpoints=3))
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["checkpoint-00000008.pt", "checkpoint-00000010.pt", "checkpoint.pt"]
    found = {name: torch.load(tmp_path / name, weights_only=True)["step"] for name in names}
    assert list(found.values()) == [8, 10, 12]
    (tmp_path / names[0]).replace(tmp_path / "checkpoint.pt")
    assert run(tmp_path, loop_settings(checkpoint_every=2)).steps[0] == 8
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint.pt"]


KILLED = """
import sys
from pathlib import Path
import torch
from unclip.core.training import checkpoint
from unclip.core.training.stages import train_stage

save = torch.save

def slowly(state, file):
    save(state, file)
    file.flush()
    print("writing", state["step"], flush=True)
    import time
    time.sleep(float(sys.argv[3]))

def step(report):
    print("step", report.step, flush=True)

if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint.torch.save = slowly
    train_stage("prior", Path(sys.argv[1]), Path(sys.argv[2]), cpu=True, on_step=step)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX")
@pytest.mark.parametrize("moment", ["step", "writing"])
def test_a_run_that_was_killed_hard_has_the_same_losses(settings: dict, tmp_path: Path, moment: str) -> None:
    base = changed(changed(settings["prior"], "loop.steps", 8), "loop.checkpoint_every", 2)
    config = write_config(tmp_path / "c.toml", base)
    train_stage("prior", config, tmp_path / "whole", cpu=True)
    (tmp_path / "train.py").write_text(KILLED)
    folder = tmp_path / "killed"
    at = f"{moment} {random.Random(moment).choice((4, 6) if moment == 'writing' else (3, 4, 5))}"
    slow = "0.5" if moment == "writing" else "0"  # long enough for the signal
    arguments = [tmp_path / "train.py", config, folder, slow]
    killed_on_forks(1, *arguments, when=lambda said: at in said.splitlines())
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert saved in (2, 4, 6)
    train_stage("prior", config, folder, cpu=True)
    assert [(row["step"], row["loss"]) for row in read_log(folder / "log.jsonl")] == [
        (row["step"], row["loss"]) for row in read_log(tmp_path / "whole" / "log.jsonl")
    ]
    assert not list(folder.glob(".*.tmp"))
    exported = [(tmp_path / name / "prior.safetensors").read_bytes() for name in ("whole", "killed")]
    assert exported[0] == exported[1]


# --- validation and trackers ---


def test_the_validation_loss_is_of_held_out_data_and_changes_nothing(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", loop_settings())
    judged = run(tmp_path / "judged", loop_settings(validate_every=5, log_every=4))
    assert_equal(weights(judged), weights(plain))
    rows = read_log(tmp_path / "judged" / "log.jsonl")
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 12]
    found = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert found.keys() == {5, 10, 12}
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("stage", [stage for stage in RECIPES if stage != "classifier"])
def test_every_stage_is_judged_on_held_out_pictures(stage: str, settings: dict, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 24)
    data = {"source": "folder", "path": str(folder), "held_out": 0.3, "workers": 0}
    short = changed(changed(settings[stage], "loop.steps", 2), "loop.validate_every", 1)
    config = write_config(tmp_path / "c.toml", {**changed(short, "loop.validation_batches", 1), "data": data})
    train_stage(stage, config, tmp_path / "run", cpu=True)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert all(row["validation_loss"] > 0 for row in rows)
    with pytest.raises(ValueError, match=r"none are held out: raise data\.held_out"):
        write_config(tmp_path / "c.toml", {**short, "data": {**data, "held_out": 0.0}})
        train_stage(stage, tmp_path / "c.toml", tmp_path / "none", cpu=True)


def test_curves_are_written_for_tensorboard(tmp_path: Path) -> None:
    run(tmp_path, loop_settings(steps=3, log_with=("tensorboard",)))
    assert [path for path in (tmp_path / "unclip").rglob("events.out.tfevents.*") if path.stat().st_size]


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^loop\.log_with names wandb, which is not installed: pip"):
        run(tmp_path, loop_settings(log_with=("wandb",)))


# --- gradient checkpointing ---


def kept_for_the_gradient(recipe: Any, again: bool) -> tuple[float, list[torch.Tensor], int]:
    """The loss of a step, its gradients, and how many numbers were kept for them."""
    if again:
        assert recompute_blocks(recipe.network) > 0
    for parameter in recipe.network.parameters():
        if parameter.ndim > 1 and not parameter.any():  # what starts at zero would hide what lies before it
            nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = recipe.loss(recipe.network, recipe.batch(0), torch.Generator().manual_seed(1))
    loss.backward()
    gradients = [parameter.grad for parameter in recipe.network.parameters() if parameter.grad is not None]
    return loss.item(), gradients, sum(kept.values())


@pytest.mark.parametrize("stage", RECIPES)
def test_computing_blocks_again_gives_the_same_gradients_from_less(stage: str, settings: dict) -> None:
    deep = settings[stage]
    if stage in ("prior", "ar-prior"):
        deep = changed(deep, "model.layers", 4)
    if stage == "clip":
        deep = changed(changed(deep, "model.vision.layers", 3), "model.text.layers", 3)
    plain, again = (
        kept_for_the_gradient(build_recipe(stage, deep, "test.toml")[1], way) for way in (False, True)
    )
    assert again[0] == pytest.approx(plain[0], rel=1e-5)
    assert len(plain[1]) == len(again[1])
    for one, other in zip(plain[1], again[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert again[2] < 0.75 * plain[2]
