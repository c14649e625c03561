"""Compile node: the same stages, faster on a GPU after a slow first run."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import replace
from typing import Any

import torch

from ..core.networks.compiled import compiled_copy
from ..core.stages import DecoderStage, UpsamplerStage
from . import host, inputs, sockets


class UnCLIPCompile:
    """Decoder and upsampler through torch.compile."""

    CATEGORY = "unCLIP/load"
    DESCRIPTION = (
        "Compiles the decoder and the upsampler for this machine with torch.compile. The first picture takes "
        "a minute or more longer, the next ones less, on a GPU; the pictures stay the same but for rounding. "
        "The prior is not compiled: its cache has saved most of its work already."
    )
    EXPERIMENTAL = True
    SEARCH_ALIASES = ["torch compile", "torchcompilemodel", "speed", "inductor", "unclip compile"]
    RETURN_TYPES = (sockets.DECODER, sockets.UPSAMPLER)
    RETURN_NAMES = ("decoder", "upsampler")
    OUTPUT_TOOLTIPS = (
        "The decoder, compiled at its first run. Empty where none is connected.",
        "The upsampler, compiled at its first run. Empty where none is connected.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {},
            "optional": {
                "decoder": inputs.socket(sockets.DECODER, "A decoder to compile."),
                "upsampler": inputs.socket(sockets.UPSAMPLER, "An upsampler to compile."),
            },
        }

    def execute(
        self, decoder: DecoderStage | None = None, upsampler: UpsamplerStage | None = None
    ) -> tuple[DecoderStage | None, UpsamplerStage | None]:
        if decoder is None and upsampler is None:
            raise ValueError(
                "decoder, upsampler: nothing arrived at either; connect a stage that the loaded bundle has"
            )
        require_compiler(host.compute_device())
        return _compiled(decoder), _compiled(upsampler)


def _compiled(stage: Any) -> Any:
    return None if stage is None else replace(stage, network=compiled_copy(stage.network))


def require_compiler(device: torch.device) -> None:
    """Raise a ValueError where torch.compile has nothing to make machine code with."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ValueError(
                "torch.compile needs the package triton on a GPU, and it is not installed: install it into "
                "the Python that runs this (`pip install triton`, on Windows `pip install triton-windows`)"
            )
    elif device.type == "cpu":
        compilers = (os.environ.get("CXX") or "g++", "c++", "clang++", "cl")
        if not any(shutil.which(name) for name in compilers):
            raise ValueError(
                f"torch.compile needs a C++ compiler on the CPU, and none of {', '.join(compilers)} was "
                f"found: install one, or name yours in the environment variable CXX"
            )
