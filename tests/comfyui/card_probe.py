"""Our stages under ComfyUI's own model management, on a graphics card that is only counted; JSON on stdout.

The networks are modules of the right size without content, which note where they were sent to; the card is
ComfyUI's question how much memory is free. Run by test_model_management.py: card_probe.py CHECKOUT.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GIGABYTE = 1024**3
# Weights at fp16 and activations of one picture, in GB: see tests/core/pipelines/test_memory.py.
KARLO = {"prior": (1.90, 0.08), "decoder": (1.66, 0.13), "upsampler": (2.72, 0.72)}
MINI = {"prior": (0.005, 0.001), "decoder": (0.022, 0.02), "upsampler": (0.002, 0.15)}
SDXL = 5.2


def make_card(size: float) -> tuple[Any, Callable[[float], Any]]:
    """A card of so many GB in ComfyUI's eyes, and a function that makes a network of so many."""
    import comfy.model_management as management
    import torch
    from torch import nn

    parts: list[Any] = []

    class Part(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(size // 2, dtype=torch.float16, device="meta"))
            self.place = "cpu"
            parts.append(self)

        def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Part:
            self.place = fn(torch.empty(0)).device.type  # what Module.to would make of a weight
            return self

        @property
        def on_card(self) -> int:
            return self.weight.nbytes if self.place == "meta" else 0

    class Network(nn.Module):
        config = SimpleNamespace(in_channels=3, concat_channels=0, channels=32)

        def __init__(self, size: float) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Part(int(size * GIGABYTE / 20)) for _ in range(20))

        @property
        def share(self) -> float:
            """How much of it is on the card, 0..1."""
            return sum(part.on_card > 0 for part in self.parts) / len(self.parts)

    def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
        free = size * GIGABYTE - sum(part.on_card for part in parts)
        return (free, 0) if torch_free_too else free

    management.unload_all_models()
    management.get_free_memory = free_memory
    management.get_torch_device = lambda: torch.device("meta")
    management.vram_state = management.VRAMState.NORMAL_VRAM
    return free_memory, Network


def make_stages(network: Callable[[float], Any], sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    from unclip.core.diffusion.spec import DiffusionSpec
    from unclip.core.embeddings.space import EmbeddingSpace
    from unclip.core.stages import DecoderStage, PriorStage, UpsamplerStage

    space, spec = EmbeddingSpace("unclip/test", 4), DiffusionSpec()
    built = {name: network(size) for name, (size, _) in sizes.items()}
    return {
        "prior": PriorStage(built["prior"], space, spec),
        "decoder": DecoderStage(built["decoder"], space, spec),
        "upsampler": UpsamplerStage(built["upsampler"], 64, spec),
    }


def native(network: Any) -> Any:
    """A model of ComfyUI's own, loaded as its samplers do."""
    import comfy.model_management as management
    import comfy.model_patcher
    import torch

    patcher = comfy.model_patcher.ModelPatcher(network, torch.device("meta"), torch.device("cpu"))
    management.load_models_gpu([patcher], memory_required=0)
    return patcher


def run_all(stages: dict[str, Any], sizes: dict[str, tuple[float, float]], free: Callable) -> dict[str, Any]:
    from unclip.nodes import placement

    found: dict[str, Any] = {}
    for name, stage in stages.items():
        activations = int(sizes[name][1] * GIGABYTE)
        with placement.on_device(stage, activations):
            found[name] = {
                "own": stage.network.share,
                "room": (free() - activations) / GIGABYTE,
                "all": {each: other.network.share for each, other in stages.items()},
            }
    return found


def karlo(size: float) -> dict[str, Any]:
    """Two runs of all stages, then room for something else."""
    import comfy.model_management as management

    free, network = make_card(size)
    stages = make_stages(network, KARLO)
    first, second = run_all(stages, KARLO, free), run_all(stages, KARLO, free)
    management.free_memory(0.9 * size * GIGABYTE, management.get_torch_device())
    return {"first": first, "second": second, "room_after": free() / GIGABYTE}


def beside_sdxl(sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    free, network = make_card(8)
    model = native(network(SDXL))
    before = model.model.share
    found = run_all(make_stages(network, sizes), sizes, free)
    return {"before": before, "after": model.model.share, "stages": found}


def failures() -> dict[str, Any]:
    """Out of memory and Stop in the middle of a stage; what the executor does then; the next prompt."""
    import comfy.model_management as management
    from unclip.nodes import placement

    free, network = make_card(8)
    stages, found = make_stages(network, KARLO), {}
    errors = {
        "memory": management.OOM_EXCEPTION("CUDA out of memory"),
        "stop": management.InterruptProcessingException(),
    }
    for name, error in errors.items():
        try:
            with placement.on_device(stages["decoder"], GIGABYTE):
                raise error
        except (management.OOM_EXCEPTION, management.InterruptProcessingException) as caught:
            told = type(caught).__name__
            if isinstance(caught, management.OOM_EXCEPTION):  # execution.py
                management.unload_all_models()
        left = stages["decoder"].network.share
        again = run_all(stages, KARLO, free)
        management.unload_all_models()
        found[name] = {
            "told": told,
            "left": left,
            "again": again["upsampler"]["own"],
            "unloaded": [stage.network.share for stage in stages.values()],
        }
    return found


def sampled(state: str, size: float) -> dict[str, float]:
    """How much of a decoder is on a card of so many GB around the steps of ComfyUI's samplers."""
    import comfy.model_management as management
    import comfy.sampler_helpers
    import torch
    from unclip.core.networks.unet import UNetCondition
    from unclip.nodes.native_model import CONDITION_KEY, NativeCondition, native_model

    _, network = make_card(size)
    management.vram_state = management.VRAMState[state]
    decoder = make_stages(network, KARLO)["decoder"]
    model, tokens = native_model(decoder), torch.zeros(1, 1, 4)
    condition = NativeCondition(UNetCondition(torch.zeros(1, 4), None, (), None), tokens, decoder)
    # comfy.samplers.CFGGuider.outer_sample, without the steps.
    conditioning = comfy.sampler_helpers.convert_cond([[tokens, {CONDITION_KEY: condition}]])
    real_model, _, _ = comfy.sampler_helpers.prepare_sampling(
        model, [1, 3, 64, 64], {"positive": conditioning}, model.model_options
    )
    found = {"before": decoder.network.share}
    model.pre_run()
    real_model.extra_conds(**conditioning[0], device=model.load_device, noise=torch.zeros(1, 3, 64, 64))
    found["in"] = decoder.network.share
    model.cleanup()
    return found | {"after": decoder.network.share, "believed": model.loaded_size() / model.model_size()}


def together(size: float) -> list[dict[str, float]]:
    """Shares of a decoder and a weaker one that run together, on a card that other stages had filled."""
    from unclip.nodes import placement

    free, network = make_card(size)
    stages, others = make_stages(network, KARLO), make_stages(network, KARLO)
    decoder, weak = stages["decoder"], others["decoder"]
    found = []
    for _ in range(2):
        run_all({"prior": stages["prior"]}, KARLO, free)
        activations = int(KARLO["decoder"][1] * GIGABYTE)
        with placement.on_device(decoder, activations, beside=weak):
            shares = {"decoder": decoder.network.share, "weak": weak.network.share}
            found.append(shares | {"room": (free() - activations) / GIGABYTE})
    return found


def forgotten() -> dict[str, Any]:
    """A stage that no output holds any more."""
    import comfy.model_management as management

    free, network = make_card(8)
    stages = make_stages(network, MINI)
    run_all(stages, MINI, free)
    known = len(management.current_loaded_models)
    stages.clear()
    gc.collect()
    return {"known": known, "left": len(management.current_loaded_models)}


def cache() -> list[str] | None:
    """In which order ComfyUI's RAM cache lets go of a former workflow; None for a version without."""

    import comfy_execution.caching as caching
    import torch
    from unclip.core.embeddings.space import Embedding, EmbeddingSpace
    from unclip.nodes import placement

    if not hasattr(caching, "RAMPressureCache"):
        return None
    _, network = make_card(8)
    stages = make_stages(network, KARLO)
    small = Embedding(torch.zeros(1, 4), EmbeddingSpace("unclip/test", 4))
    outputs = {
        "embedding": small,
        "picture": torch.zeros(1, 512, 512, 3),  # 3 MB
        "decoder": placement.managed(stages["decoder"]),
        "prior": placement.managed(stages["prior"]),
    }
    held = caching.RAMPressureCache(None)
    evicts = hasattr(held, "ram_release")  # ComfyUI 0.33 and newer
    for age, (key, output) in enumerate(outputs.items()):
        held.cache[key] = SimpleNamespace(outputs=([output],)) if evicts else (([output],), None)
        held.used_generation[key], held.timestamps[key] = 0, age
    held.generation = 1
    order = []
    while held.cache:
        free = iter([0, 0] if evicts else [0, 0, 0])  # little, until one is gone

        def left(free=free) -> Any:
            return SimpleNamespace(available=next(free, 100 * GIGABYTE))

        caching.psutil = SimpleNamespace(virtual_memory=left)
        before = set(held.cache)
        held.ram_release(8 * GIGABYTE) if evicts else held.poll(8)
        order += sorted(before - set(held.cache))
    return order


def main() -> None:
    checkout = Path(sys.argv[1])
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path[0] = str(checkout)
    logging.disable(logging.INFO)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import folder_paths  # noqa: F401 (with these two loaded, the pack takes the process for ComfyUI)
    import torch

    sys.path.append(str(ROOT / "tests" / "comfyui"))
    from bridge_probe import load_package

    load_package("unclip", ROOT)
    with torch.inference_mode():
        measured = {
            "karlo": {str(size): karlo(size) for size in (8, 4)},
            "sdxl": {"mini": beside_sdxl(MINI), "karlo": beside_sdxl(KARLO)},
            "failures": failures(),
            "sampled": {
                "whole": sampled("NORMAL_VRAM", 8),
                "part": sampled("LOW_VRAM", 2.5),
                "nothing": sampled("NO_VRAM", 8),
            },
            "together": {str(size): together(size) for size in (8, 4.6, 4)},
            "forgotten": forgotten(),
            "cache": cache(),
        }
    sys.stdout.write("\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
