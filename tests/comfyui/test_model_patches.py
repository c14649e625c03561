"""ComfyUI's own nodes that change a MODEL, on a decoder's: each works, or says why it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AROUND = [
    "APG",
    "CFGNorm",
    "CFGZeroStar",
    "DualCFGGuider",
    "DualModelGuider",
    "EasyCache",
    "Epsilon Scaling",
    "FreSca",
    "LazyCache",
    "Mahiro",
    "PerpNeg",
    "PerpNegGuider",
    "RenormCFG",
    "RescaleCFG",
    "TCFG",
    "TemporalScoreRescaling",
]
"""What is done around a network, which changes the picture of any."""

INSIDE = [
    "FreeU",
    "FreeU_V2",
    "HyperTile",
    "NAGuidance",
    "PatchModelAddDownscale",
    "PerturbedAttentionGuidance",
    "ScaleROPE",
    "SelfAttentionGuidance",
    "SkipLayerGuidanceDiT",
    "SkipLayerGuidanceDiTSimple",
    "SkipLayerGuidanceSD3",
    "TomePatchModel",
]
"""What reaches into networks that are built in another way."""


@pytest.fixture(scope="module")
def found(comfyui_dir):
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    probe = Path(__file__).with_name("patches_probe.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(probe), str(comfyui_dir)], capture_output=True, text=True, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_node_works_or_says_what_to_do(found):
    refused = {name: said for name, said in found.items() if isinstance(said, str)}
    assert len(found) - len(refused) > 20, "most work"
    for name, said in refused.items():
        kind, _, message = said.partition(": ")
        assert kind in ("ValueError", "AttributeError") and message.startswith("model: "), f"{name}: {said}"
        assert "Take" in message, f"{name}: {said}"


@pytest.mark.parametrize("name", AROUND)
def test_what_is_done_around_a_network_works(found, name):
    if name not in found:
        pytest.skip(f"this ComfyUI has no {name}")
    assert not isinstance(found[name], str), found[name]
    assert found[name] > 1e-3


@pytest.mark.parametrize("name", INSIDE)
def test_what_reaches_into_a_network_is_refused(found, name):
    if name not in found:
        pytest.skip(f"this ComfyUI has no {name}")
    assert str(found[name]).startswith("ValueError: model: what reaches into a network")


@pytest.mark.parametrize(
    ("name", "asked"), [("ModelNoiseScale", "set_parameters"), ("HiDreamO1PatchSeamSmoothing", "multiplier")]
)
def test_what_asks_for_another_model_is_told_so(found, name, asked):
    if name not in found:
        pytest.skip(f"this ComfyUI has no {name}")
    assert f"model: a node asks it for {asked!r}" in found[name]
