"""Compile node: the same stages, faster on a GPU after a slow first run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..core.acceleration.compiled import compiled_copy
from ..core.acceleration.cuda_graphs import allocator_keeps_recordings
from ..core.acceleration.recorded import can_be_recorded, recorded_copy
from ..core.stages import DecoderStage, PriorStage, UpsamplerStage
from . import host, inputs, placement, sockets

COMPILE, GRAPHS, BOTH = MODES = ("torch.compile", "CUDA graphs", "torch.compile + CUDA graphs")

Stage = TypeVar("Stage", PriorStage, DecoderStage, UpsamplerStage)


class UnCLIPCompile:
    """Stages through torch.compile, or recorded as CUDA graphs, or both."""

    CATEGORY = "unCLIP/load"
    DESCRIPTION = (
        "Makes stages faster on a GPU; the pictures stay the same but for rounding. torch.compile makes "
        "fewer, larger kernels of the decoder and the upsampler: the first picture takes a minute or more "
        "longer. CUDA graphs launch all kernels of a network, the prior's too, at once: ready in a second or "
        "two. Both together are fastest."
    )
    EXPERIMENTAL = True
    SEARCH_ALIASES = [
        "torch compile",
        "torchcompilemodel",
        "speed",
        "inductor",
        "unclip compile",
        "cuda graph",
        "cudagraphs",
    ]
    RETURN_TYPES = (sockets.DECODER, sockets.UPSAMPLER, sockets.PRIOR)
    RETURN_NAMES = ("decoder", "upsampler", "prior")
    OUTPUT_TOOLTIPS = (
        "The decoder, compiled or recorded at its first run. Empty where none is connected.",
        "The upsampler, compiled or recorded at its first run. Empty where none is connected.",
        "The prior; a diffusion prior is recorded at its first run. Empty where none is connected.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {},
            "optional": {
                "decoder": inputs.socket(sockets.DECODER, "A decoder to make faster."),
                "upsampler": inputs.socket(sockets.UPSAMPLER, "An upsampler to make faster."),
                "prior": inputs.socket(
                    sockets.PRIOR,
                    "A diffusion prior to record as CUDA graphs. torch.compile leaves it as it is, and so do "
                    "CUDA graphs with other priors.",
                ),
                # Optional, because prompts saved before it was there must still run.
                "mode": inputs.choice(
                    list(MODES),
                    "CUDA graphs need an NVIDIA GPU, and ComfyUI started with --disable-cuda-malloc.",
                ),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None = None,
        upsampler: UpsamplerStage | None = None,
        prior: PriorStage | None = None,
        mode: str = COMPILE,
    ) -> tuple[DecoderStage | None, UpsamplerStage | None, PriorStage | None]:
        if decoder is None and upsampler is None and prior is None:
            raise ValueError(
                "decoder, upsampler, prior: nothing arrived at any of them; connect a stage that the loaded "
                "bundle has"
            )
        if mode not in MODES:
            raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(MODES)}")
        device = host.compute_device()
        if mode in (COMPILE, BOTH):
            require_compiler(device)
            decoder, upsampler = _changed(decoder, compiled_copy), _changed(upsampler, compiled_copy)
        if mode in (GRAPHS, BOTH):
            require_cuda_graphs(device)
            decoder, upsampler = _changed(decoder, recorded_copy), _changed(upsampler, recorded_copy)
            if prior is not None and can_be_recorded(prior.network):
                prior = _changed(prior, recorded_copy)
        return placement.managed(decoder), placement.managed(upsampler), placement.managed(prior)


def _changed(stage: Stage | None, change: Callable[[Any], Any]) -> Stage | None:
    return None if stage is None else replace(stage, network=change(stage.network))


def require_cuda_graphs(device: torch.device) -> None:
    """Raise a ValueError where no CUDA graphs can be recorded."""
    if device.type != "cuda":
        raise ValueError(
            f"mode: CUDA graphs need an NVIDIA GPU, and this runs on {device.type}; choose {COMPILE}, or "
            f"bypass the node"
        )
    if not allocator_keeps_recordings():
        raise ValueError(
            f"mode: CUDA graphs need PyTorch's own memory allocator, and this process was started with "
            f"{torch.cuda.get_allocator_backend()}; start ComfyUI with --disable-cuda-malloc, or choose "
            f"{COMPILE}"
        )


def require_compiler(device: torch.device) -> None:
    """Raise a ValueError where torch.compile has nothing to make machine code with."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ValueError(
                "torch.compile needs the package triton on a GPU, and it is not installed: install it into "
                "the Python that runs this (`pip install triton`, on Windows `pip install triton-windows`)"
            )
        if sys.platform != "win32":  # there triton brings one along
            _require_one_of((os.environ.get("CC") or "gcc", "clang", "cc"), "C", "on a GPU too", "CC")
    elif device.type == "cpu":
        compilers = (os.environ.get("CXX") or "g++", "c++", "clang++", "cl")
        _require_one_of(compilers, "C++", "on the CPU", "CXX")


def _require_one_of(compilers: tuple[str, ...], language: str, where: str, variable: str) -> None:
    if not any(shutil.which(name) for name in compilers):
        raise ValueError(
            f"torch.compile needs a {language} compiler {where}, and none of {', '.join(compilers)} was "
            f"found: install one, or name yours in the environment variable {variable}"
        )
