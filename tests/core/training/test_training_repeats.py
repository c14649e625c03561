"""A stage trained again from its config gives the losses of its log; the logs of mini fit its configs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import unclip
from unclip.core.config import config_from_dict
from unclip.core.training.settings import LoopConfig, learning_rate
from unclip.core.training.stages import RECIPES, read_toml, train_stage

from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip
from ...helpers.training import write_tiny_shards

MINI = Path(unclip.__file__).parent / "models" / "mini"

STEPS = 6
# Losses of the same run on the same machine; they differ by rounding only, and a log keeps five decimals.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


def trained(stage: str, settings: dict[str, Any], folder: Path, *stops: int) -> list[dict[str, float]]:
    """The log of a run from a config file, ended and resumed at ``stops``."""
    folder.mkdir()
    config = write_config(folder / "config.toml", changed(settings, "loop.steps", STEPS))
    for stop in (*stops, STEPS):
        torch.manual_seed(stop)  # what was drawn before must not matter
        train_stage(stage, config, folder / "run", steps=stop, cpu=True)
    return read_log(folder / "run" / "log.jsonl")


def apart(first: list[dict[str, float]], second: list[dict[str, float]]) -> float:
    """The largest difference of two runs' losses."""
    assert [(row["step"], row["lr"]) for row in first] == [(row["step"], row["lr"]) for row in second]
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("stage", RECIPES)
def test_a_stage_trained_again_from_its_config_has_the_same_losses(
    stage: str, settings: dict, tmp_path: Path
) -> None:
    log = trained(stage, settings[stage], tmp_path / "first")
    assert [row["step"] for row in log] == list(range(1, STEPS + 1))
    assert apart(trained(stage, settings[stage], tmp_path / "again"), log) <= TOLERANCE
    assert apart(trained(stage, settings[stage], tmp_path / "resumed", 3), log) <= TOLERANCE
    assert apart(trained(stage, changed(settings[stage], "loop.seed", 1), tmp_path / "other"), log) > 1e-2

    faster = trained(stage, changed(settings[stage], "loop.learning_rate", 2e-2), tmp_path / "faster")
    assert abs(faster[0]["loss"] - log[0]["loss"]) <= TOLERANCE, "before the first step nothing has changed"
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(faster, log, strict=True)) > 1e-3
    assert faster[-1]["lr"] > log[-1]["lr"]

    if stage != "clip":  # whose loss compares all rows with each other
        parts = trained(stage, changed(settings[stage], "loop.accumulate", 3), tmp_path / "parts")
        assert apart(parts, log) <= 5 * TOLERANCE


# --- the logs of mini ---

# Runs whose cosine was stretched or shortened on the way, in the steps of its end from a step on: what the
# model card says of them, and the log of CLIP besides.
STRETCHED = {
    "clip": {0: 800, 200: 520},
    "decoder": {0: 9000, 3250: 7000, 4750: 8400},
    "decoder-round-2": {0: 3200, 750: 2400},
    "decoder-round-3": {0: 8000, 2500: 7000, 3250: 5500},
    "decoder-round-4": {0: 11000, 1500: 5200, 4000: 4600},
    "decoder-round-5": {0: 3400, 750: 1800},
    "decoder-round-6": {0: 2300, 1000: 1500},
    "decoder-round-8": {0: 6000, 3904: 5000},
    "ar-prior-round-6": {0: 3000, 509: 1800},
    "prior-round-3": {0: 3600, 250: 2000},
    "prior-round-6": {0: 4000, 1000: 3000},
    "upsampler-256": {0: 1500, 500: 800},
}
# Rows of a log that were lost when its run was resumed.
LOST = {"prior-round-3": range(260, 501, 20)}
# Rows that a run wrote beside its others where it was told to end.
STOPPED = {"decoder-round-8": {1377, 3904}, "prior-round-9": {1333}, "ar-prior-round-6": {509}}
LOGS = sorted(path.stem for path in (MINI / "logs").glob("*.jsonl"))


def loop_of(run: str) -> LoopConfig:
    path = MINI / "configs" / f"{run}.toml"
    return config_from_dict(LoopConfig, read_toml(path)["loop"], str(path))


def test_every_run_of_a_config_has_its_log() -> None:
    trained = {path.stem for path in (MINI / "configs").glob("*.toml") if "loop" in read_toml(path)}
    assert trained - {"classifier"} == set(LOGS)  # the judge is no part of mini
    assert set(STRETCHED) <= set(LOGS)


@pytest.mark.parametrize("run", LOGS)
def test_a_log_follows_the_schedule_of_its_config(run: str) -> None:
    loop, rows = loop_of(run), read_log(MINI / "logs" / f"{run}.jsonl")
    every = range(loop.log_every, loop.steps + 1, loop.log_every)
    assert [row["step"] for row in rows] == sorted(
        {*every, loop.steps, *STOPPED.get(run, ())} - {*LOST.get(run, ())}
    )
    assert all(set(row) == {"step", "loss", "lr", "images_per_second"} for row in rows)
    ends = STRETCHED.get(run, {0: loop.steps})
    assert list(ends.values())[-1] == loop.steps, "a run ends as its config says"
    for row in rows:
        steps = next(steps for start, steps in reversed(ends.items()) if row["step"] > start)
        # The loop logs the rate of the step just done, with eight decimals.
        assert row["lr"] == pytest.approx(
            learning_rate(replace(loop, steps=steps), row["step"] - 1), abs=6e-9
        )


@pytest.mark.parametrize("run", LOGS)
def test_a_log_tells_its_config_from_another_one(run: str) -> None:
    """The test above can fail: no log fits a schedule that is a tenth longer, faster or warmer."""
    loop, rows = loop_of(run), read_log(MINI / "logs" / f"{run}.jsonl")
    for other in (
        replace(loop, steps=round(1.1 * loop.steps)),
        replace(loop, learning_rate=1.1 * loop.learning_rate),
        replace(loop, warmup=2 * loop.warmup),
    ):
        errors = [abs(row["lr"] - learning_rate(other, row["step"] - 1)) for row in rows]
        assert max(errors) > 6e-9
