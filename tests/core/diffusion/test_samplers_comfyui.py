"""Our samplers against ComfyUI's own, with one network and noise: where COMFYUI_DIR names a checkout.

COMFYUI_PYTHON is the Python that has ComfyUI's requirements; without it, that of the tests.

Different on purpose: ComfyUI's noise comes from a Brownian tree, here from a generator for each picture,
which is given to both; its σ are any numbers, here those of the trained timesteps; strides more than twice as
long in λ as the one before, Heun's strides in which σ more than halves, and DPM-Solver++ of fewer than 15
steps are of lower order here (see the samplers). Its ``dpmpp_2m_cfg_pp`` counts the guidance of a step as
part of the change since the last one; here dpmpp_2m extrapolates the guided prediction.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.denoiser import Prediction
from unclip.core.diffusion.sampling import SAMPLERS
from unclip.core.diffusion.schedule import Schedule, schedule_from_betas

from ...helpers import comfyui_samplers

TOLERANCE, APART = 1e-4, 1e-3
STEPS: Schedule = schedule_from_betas(torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)).respace(
    20, spacing="karras"
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, Tensor]:
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set: no ComfyUI to compare with")
    work = tmp_path_factory.mktemp("comfyui")
    torch.save(STEPS.alphas_cumprod, work / "alphas.pt")
    script = Path(comfyui_samplers.__file__).resolve()
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(script), str(work / "alphas.pt"), str(work / "states.pt")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(work / "states.pt")


def ours(name: str, renoises: bool = False, **options) -> Tensor:
    def denoiser(x: Tensor, step: int) -> Prediction:
        conditional, null = comfyui_samplers.branches(x, STEPS.alphas_cumprod[step].item())
        guided = null + comfyui_samplers.GUIDANCE * (conditional - null)
        return Prediction(guided.float(), renoise=null.float() if renoises else None)

    x, generators = comfyui_samplers.starting_noise()
    sampler = SAMPLERS[name]
    if "generators" in sampler.takes:
        options["generators"] = generators
    if name == "euler_ancestral":
        options["learned"] = False
    return sampler.run(denoiser, x, STEPS, **options)


@pytest.mark.parametrize(
    "name", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"]
)
def test_a_sampler_is_comfyuis(theirs: dict[str, Tensor], name: str) -> None:
    assert (STEPS.snr.sqrt().log().diff().abs() < math.log(2)).all()
    assert (ours(name) - theirs[name]).abs().max() <= TOLERANCE
    other = "euler" if name != "euler" else "heun"
    assert (ours(other) - theirs[name]).abs().max() > APART


def test_sa_solver_is_comfyuis(theirs: dict[str, Tensor]) -> None:
    second = ours("sa_solver", tau=lambda time: 0.7)
    assert (second - theirs["sa_solver"]).abs().max() <= TOLERANCE
    third = ours("sa_solver", tau=lambda time: 1.0, order=3)
    assert (third - theirs["sa_solver_3"]).abs().max() <= TOLERANCE
    assert (second - theirs["sa_solver_3"]).abs().max() > APART


@pytest.mark.parametrize("name", ["euler", "euler_ancestral"])
def test_guidance_that_renoises_with_the_null_prediction_is_comfyuis(
    theirs: dict[str, Tensor], name: str
) -> None:
    """CFG++, 2406.08070."""
    assert (ours(name, renoises=True) - theirs[f"{name} cfg_pp"]).abs().max() <= TOLERANCE
    assert (ours(name) - theirs[f"{name} cfg_pp"]).abs().max() > APART
