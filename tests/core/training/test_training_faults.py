"""What goes wrong in a run: losses that are not finite, damaged checkpoints, full disks, killed writes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unclip.core.config import Range
from unclip.core.training import checkpoint as checkpoint_module
from unclip.core.training.checkpoint import cut_log, save_checkpoint
from unclip.core.training.loop import train
from unclip.core.training.recipes.prior import PriorRecipe
from unclip.core.training.stages import build_recipe, read_toml, train_stage

from ...helpers.regression import Killed, Regression, assert_equal, kill_at, loop_settings, run, weights
from ...helpers.stages import changed, stage_settings, write_config, write_tiny_clip
from ...helpers.training import write_tiny_shards


class Diverging(Regression):
    """Its loss, or only the gradient of it, is not finite at a step, counted from 1."""

    def __init__(self, at: int, value: float, part: str = "loss") -> None:
        super().__init__()
        self.at, self.value, self.part = at, value, part

    def loss(self, network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        loss = super().loss(network, batch, generator)
        if len(self.noise) != self.at:
            return loss
        if self.part == "loss":
            return loss * self.value
        loss.register_hook(lambda gradient: gradient * self.value)
        return loss


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def steps(folder: Path) -> list[int]:
    return [json.loads(row)["step"] for row in (folder / "log.jsonl").read_text().splitlines()]


# --- not finite ---


@pytest.mark.parametrize(
    ("value", "part", "message"),
    [
        (float("nan"), "loss", "the loss of step 7 is nan"),
        (float("inf"), "loss", "the loss of step 7 is inf"),
        (float("nan"), "gradient", "the gradient of step 7 is nan"),
    ],
)
def test_a_run_ends_at_its_first_loss_that_is_not_finite(
    tmp_path: Path, value: float, part: str, message: str
) -> None:
    recipe = Diverging(7, value, part)
    with pytest.raises(ValueError, match=f"^{message}: the run ends here, .*loop.learning_rate"):
        run(tmp_path, loop_settings(checkpoint_every=3), recipe=recipe)
    assert len(recipe.noise) == 7
    assert saved(tmp_path)["step"] == 6
    assert steps(tmp_path) == list(range(1, 7))
    assert recipe.exported == []


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_nothing_is_saved_where_the_step_of_a_checkpoint_is_not_finite(tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match=f"the {part} of step 6 is nan"):
        run(tmp_path, loop_settings(checkpoint_every=3), recipe=Diverging(6, float("nan"), part))
    assert saved(tmp_path)["step"] == 3


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run(tmp_path, loop_settings(stop_at=4))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for part in ("network", "ema"):
        state = saved(tmp_path)
        state[part]["0.weight"][0, 0] = float("inf")
        with pytest.raises(ValueError, match=r"after step 4 the weight 0\.weight is not finite"):
            save_checkpoint(tmp_path / "checkpoint.pt", state)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# --- damaged checkpoints ---


def damage(folder: Path, kind: str) -> None:
    path = folder / "checkpoint.pt"
    state = saved(folder)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        {
            "lacks": lambda: [state.pop(name) for name in ("ema", "optimizer")],
            "step": lambda: state.update(step=-3),
            "nan": lambda: state["network"]["0.weight"].fill_(float("nan")),
            "number": lambda: state.update(ema=3),
            "averages": lambda: state["ema"].pop("0.weight"),
            "optimizer": lambda: state.update(optimizer={"state": {}, "param_groups": []}),
        }[kind]()
        torch.save(state, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", " is damaged, or no checkpoint of a run ("),
        ("text", " is damaged, or no checkpoint of a run ("),
        ("empty", " is damaged, or no checkpoint of a run ("),
        ("list", " is no checkpoint of a run: it lacks step, network, ema, optimizer; put an older"),
        ("lacks", " is no checkpoint of a run: it lacks ema, optimizer; put an older"),
        ("step", ": its step is -3, expected a whole number; put an older"),
        ("nan", ": network 0.weight is not finite: put an older checkpoint in its place, or remove it"),
        ("number", ": ema is not a table of tensors"),
        ("averages", " is the checkpoint of another network than this config describes"),
        ("optimizer", ": the state of its optimizer does not fit this config ("),
    ],
)
def test_a_damaged_checkpoint_is_named_and_kept(tmp_path: Path, kind: str, message: str) -> None:
    run(tmp_path, loop_settings(stop_at=4))
    damage(tmp_path, kind)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path / 'checkpoint.pt'}{message}")):
        run(tmp_path, loop_settings())
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# --- writing ---


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # a limit on the size of files stands for the disk
    run(tmp_path, loop_settings(stop_at=4))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        message = r"checkpoint\.pt: the checkpoint of step 8 cannot be written .* Is the disk full"
        with pytest.raises(OSError, match=message):
            run(tmp_path, loop_settings())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]
    run(tmp_path, loop_settings())
    assert steps(tmp_path) == list(range(1, 13))


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(checkpoint_module.os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append(to.name) or replace(self, to))
    run(tmp_path, loop_settings(stop_at=4))
    assert calls == ["fsync", "checkpoint.pt"]


def test_what_killed_runs_left_behind_is_removed(tmp_path: Path) -> None:
    left = ("checkpoint.tmp", ".checkpoint.pt.4711.tmp", ".prior.safetensors.12.tmp", ".log.jsonl.3.tmp")
    kept = ("notes.tmp", "prior.safetensors", ".hidden")
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / ".decoder.safetensors.12-0a1b2c3d.tmp").mkdir()
    (tmp_path / ".decoder.safetensors.12-0a1b2c3d.tmp" / ".tmpAbCdEf").write_text("of an export")
    run(tmp_path, loop_settings(stop_at=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "checkpoint.pt", "log.jsonl"])


# --- the log ---


@pytest.mark.parametrize("kill", [3, 7])
def test_a_resumed_run_logs_no_step_twice(tmp_path: Path, kill: int) -> None:
    with pytest.raises(Killed):
        run(tmp_path, loop_settings(), kill_at(kill))
    assert steps(tmp_path) == list(range(1, kill + 1))
    run(tmp_path, loop_settings())
    assert steps(tmp_path) == list(range(1, 13))


def test_a_row_that_was_cut_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_log(tmp_path / "none.jsonl", 2)


# --- settings ---


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


NUMBERS = {
    "clip": {
        "style_named": "0 to 1",
        "consistency.weight": "more than 0",
        "consistency.ridge": "more than 0",
    },
    "prior": {
        "drop_text": "0 to 1",
        "style_named": "0 to 1",
        "whitening": "more than 0",
        "fit_pictures": "2 to 131072",
    },
    "ar-prior": {
        "drop_text": "0 to 1",
        "style_named": "0 to 1",
        "fit_pictures": "2 to 131072",
        "smoothing": "at least 0",
    },
    "decoder": {
        "drop_clip": "0 to 1",
        "drop_text": "0 to 1",
        "min_snr_gamma": "more than 0",
        "timestep_shift": "more than 0",
    },
    "classifier": {
        "image_size": "more than 0",
        "shift": "0 to 0.49",
        "zoom": "0 to 0.49",
        "smoothing": "0 to 1",
    },
    "upsampler": {
        "low_size": "more than 0",
        "crops_per_picture": "more than 0",
        "max_noise_level": "0 to 1",
        "min_snr_gamma": "more than 0",
        "loop.steps": "more than 0",
        "loop.batch_size": "1 to 1048576",
        "loop.learning_rate": "more than 0",
        "loop.checkpoint_every": "more than 0",
        "loop.log_every": "more than 0",
        "loop.stop_at": "more than 0",
        "loop.grad_clip": "more than 0",
        "loop.warmup": "at least 0",
        "loop.weight_decay": "at least 0",
        "loop.beta2": "0 to 0.999999",
        "loop.ema_decay": "0 to 1",
        "loop.seed": "0 to 4294967295",
    },
}
WHOLE = {"steps", "batch_size", "checkpoint_every", "log_every", "stop_at", "warmup", "seed", "low_size"}
WHOLE |= {"crops_per_picture", "fit_pictures", "image_size"}


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage in NUMBERS for name in NUMBERS[stage]])
def test_numbers_out_of_their_range_are_named(settings: dict, stage: str, name: str) -> None:
    expected = NUMBERS[stage][name]
    wrong: list[float] = [-1] if name.split(".")[-1] in WHOLE else [-1.0, float("nan"), float("inf")]
    if expected == "more than 0":
        wrong.append(0)
    base = settings[stage]
    if name.startswith("consistency"):
        base = {**base, "consistency": {"teacher": settings["prior"]["clip"]}}
    for value in wrong:
        found = type(value)(value) if name.split(".")[-1] in WHOLE else float(value)
        message = f"{name} is {found}, expected {expected}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            build_recipe(stage, changed(base, name, value), "test.toml")


def test_ranges_hold_their_ends_as_they_say() -> None:
    assert [value in Range(0, 1) for value in (-0.1, 0, 1, 1.1, float("nan"))] == [0, 1, 1, 0, 0]
    assert [value in Range(0, above=True) for value in (0, 1e-9, float("inf"))] == [0, 1, 0]
    assert str(Range(0, 2, above=True)) == "more than 0 and at most 2"
    assert str(Range()) == "a finite number"


def test_the_file_of_a_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "up.toml"
    path.write_text(
        'low_size = 0\ndegradation = "blur"\ndata.shards = "x"\n[model]\nimage_size = 32\n[diffusion]\n'
        "[loop]\nsteps = 1\nbatch_size = 1\nlearning_rate = 1.0\n"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: low_size is 0, expected more than 0$"):
        train_stage("upsampler", path, tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()


def test_a_network_that_no_memory_holds_is_told(settings: dict) -> None:
    wide = changed(settings["prior"], "model.width", 900_000)
    with pytest.raises(ValueError, match=r"^test\.toml: the memory does not hold the network of \[model\]"):
        build_recipe("prior", wide, "test.toml")


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_step_that_no_memory_holds_is_told(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    config = write_config(tmp_path / "c.toml", settings["prior"])
    monkeypatch.setattr(PriorRecipe, "loss", full)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(config))}: out of memory .* the 12 rows"
    ) as caught:
        train_stage("prior", config, tmp_path / "run", cpu=True)
    assert "goes on from its last checkpoint" in str(caught.value)

    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        train_stage("prior", config, tmp_path / "run", cpu=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x\\u0000y", "cannot be the name of a file"), ("a" * 300, "but there is no config file")],
)
def test_a_name_that_no_file_has_is_told(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'extends = "{name}"\n')
    with pytest.raises(ValueError, match=message):
        read_toml(path)


# --- being told to end ---


class Told(Regression):
    """The scheduler tells the run to end while it is at a step, counted from 1."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def loss(self, network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        loss = super().loss(network, batch, generator)
        if len(self.noise) == self.at:
            signal.raise_signal(signal.SIGTERM)
        return loss


def test_a_run_that_is_told_to_end_writes_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", loop_settings())
    before = signal.getsignal(signal.SIGTERM)
    told = Told(7)
    assert train(told, loop_settings(log_every=5), tmp_path / "told", cpu=True) is False
    assert signal.getsignal(signal.SIGTERM) is before
    assert told.exported == []
    assert saved(tmp_path / "told")["step"] == 7
    assert steps(tmp_path / "told") == [5, 7]
    resumed = Regression()
    assert train(resumed, loop_settings(), tmp_path / "told", cpu=True) is True
    assert_equal(weights(resumed), weights(whole))


def test_a_run_that_is_told_to_end_in_its_last_step_ends_as_it_should(tmp_path: Path) -> None:
    told = Told(12)
    assert train(told, loop_settings(), tmp_path, cpu=True) is True
    assert len(told.exported) == 1
