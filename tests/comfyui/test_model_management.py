"""Our stages under ComfyUI's own model management, on a card that is only counted (card_probe.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .card_probe import KARLO


@pytest.fixture(scope="module")
def measured(comfyui_dir):
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    probe = Path(__file__).with_name("card_probe.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(probe), str(comfyui_dir)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("size", ["8", "4"])
def test_karlo_runs_stage_by_stage(measured, size):
    found = measured["karlo"][size]
    for run in (found["first"], found["second"]):
        for name, stage in run.items():
            assert stage["own"] == 1.0, f"{name} must be on the card as a whole"
            assert stage["room"] > 0.4, f"{name} must find room for its activations and ComfyUI's reserve"
    assert found["room_after"] > 0.9 * int(size), "ComfyUI must be able to unload every stage"


def test_nothing_is_unloaded_where_there_is_room(measured):
    for stage in measured["karlo"]["8"]["second"].values():
        assert stage["all"] == dict.fromkeys(KARLO, 1.0)


def test_on_a_small_card_only_what_does_not_fit_goes(measured):
    run = measured["karlo"]["4"]["second"]
    assert 0 < run["decoder"]["all"]["prior"] < 1
    assert run["upsampler"]["all"] == {"prior": 0.0, "decoder": 0.0, "upsampler": 1.0}


def test_mini_leaves_sdxl_where_it_is_and_karlo_takes_its_room(measured):
    mini, karlo = measured["sdxl"]["mini"], measured["sdxl"]["karlo"]
    assert mini["before"] == mini["after"] == 1.0
    assert karlo["before"] == 1.0 and karlo["after"] < 1.0


@pytest.mark.parametrize(("case", "kept"), [("whole", 1.0), ("part", 0.0), ("nothing", 0.0)])
def test_comfyuis_samplers_leave_on_the_card_what_it_knows_to_be_there(measured, case, kept):
    found = measured["sampled"][case]
    assert found["in"] == 1.0, "the steps need the decoder as a whole"
    assert found["after"] == found["believed"] == kept


def test_the_cards_on_which_the_samplers_run_are_what_they_are_called(measured):
    before = {case: found["before"] for case, found in measured["sampled"].items()}
    assert before["whole"] == 1.0 and 0 < before["part"] < 1 and before["nothing"] == 0.0


def test_a_failed_stage_leaves_the_next_prompt_working(measured):
    memory, stop = measured["failures"]["memory"], measured["failures"]["stop"]
    assert (memory["told"], memory["left"]) == ("OutOfMemoryError", 0.0)
    assert (stop["told"], stop["left"]) == ("InterruptProcessingException", 1.0)
    for found in (memory, stop):
        assert found["again"] == 1.0
        assert found["unloaded"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("size", ["8", "4.6", "4"])
def test_a_decoder_and_a_weaker_one_are_on_the_card_together(measured, size):
    for run in measured["together"][size]:
        assert run["decoder"] == run["weak"] == 1.0
        assert run["room"] > 0.4, "and find room for their activations and ComfyUI's reserve"


def test_a_stage_that_nobody_holds_leaves_no_entry(measured):
    assert measured["forgotten"] == {"known": 3, "left": 0}


def test_the_ram_cache_lets_go_of_the_largest_first(measured):
    if measured["cache"] is None:
        pytest.skip("this ComfyUI has no RAM cache")
    assert measured["cache"] == ["prior", "decoder", "picture", "embedding"]
