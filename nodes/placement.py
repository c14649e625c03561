"""Where a stage's network is: on the compute device while it runs, else where memory is plenty.

In ComfyUI its model management decides: a stage is one of ComfyUI's models (a ``ModelPatcher``), loaded right
before it runs. ComfyUI then makes as much room as weights and activations need, and no more, by unloading
what was used least; afterwards the stage stays where it is until something else needs the room. Outside
ComfyUI a stage goes to the device for the run and back.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from ..core.diffusion.samplers import StepCallback
from ..core.memory import is_out_of_memory, memory_of
from ..core.stages import ClipStage, DecoderStage, PriorStage, Stage, UpsamplerStage
from . import host

_KINDS = {
    ClipStage: ("CLIP model", "Encode fewer pictures at once."),
    PriorStage: ("prior", "Make fewer embeddings at once: a smaller batch_size, or fewer candidates."),
    DecoderStage: ("decoder", "Make fewer pictures at once: a smaller batch_size, or fewer embeddings."),
    UpsamplerStage: (
        "upsampler",
        "Upsample fewer pictures at once, or smaller ones: cut a large picture into tiles (Image Crop) and "
        "put the results together, or leave out the upsampler to 1024 pixels.",
    ),
}

# A stage in ComfyUI has this attribute, and no other place holds it: ComfyUI knows its models by weak
# references only, so that a stage that no output holds any more takes its patcher, and its entry, along.
# By the same name ComfyUI's cache (0.33 and newer) tells outputs that hold a model. No field of
# the dataclass, because a stage with another network (``dataclasses.replace``) needs another patcher.
_PATCHER = "patcher"

_Some = TypeVar("_Some", bound="Stage | None")


def managed(stage: _Some) -> _Some:
    """The same stage; in ComfyUI one of the models that it counts, on the CPU too. For what loaders return.

    Under memory pressure ComfyUI lets go of the outputs of earlier workflows, those with models first.
    """
    if stage is not None and host.comfyui() is not None:
        _patcher_of(stage, host.compute_device())
    return stage


def _patcher_of(stage: Stage, device: torch.device) -> Any:
    """The stage's one ``ModelPatcher``, made where it has none yet for this device."""
    patcher = getattr(stage, _PATCHER, None)
    if patcher is None or patcher.load_device != device:
        patcher = host.managed_model(stage.network, device)
        object.__setattr__(
            stage, _PATCHER, patcher
        )  # the dataclass is frozen, and this is none of its fields
    return patcher


@contextmanager
def on_device(stage: Stage, activations: int = 0, *, beside: Stage | None = None) -> Iterator[torch.device]:
    """Have a stage's network on the compute device inside the block.

    Args:
        activations: bytes that running it takes beside its weights, see ``core.pipelines.memory``.
        beside: another stage that it calls in its run. The two are loaded together: to make room for one,
            ComfyUI unloads the others.

    Raises:
        torch.cuda.OutOfMemoryError: loading or running it took more than there is; says what to do. It is of
            the type at which ComfyUI unloads all models, so that the next prompt starts afresh.
        MemoryError: the same on a CPU.
    """
    device = host.compute_device()
    stages = (stage,) if beside is None or beside.network is stage.network else (stage, beside)
    comfy = None if device.type == "cpu" else host.comfyui()
    placed: AbstractContextManager[None]
    out_of_memory: type[Exception]
    if device.type == "cpu":
        placed, out_of_memory = nullcontext(), MemoryError
    elif comfy is None:
        placed, out_of_memory = _alone(stages, device), torch.cuda.OutOfMemoryError
    else:
        placed, out_of_memory = _managed(stages, device, activations, comfy), comfy.models.OOM_EXCEPTION
    try:
        with placed:
            yield device
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error, out_of_memory):
            raise
        # The frames of the failed run hold its tensors for as long as anybody holds the error.
        traceback.clear_frames(error.__traceback__)
        if comfy is not None:
            comfy.models.soft_empty_cache()
        elif device.type == "cuda":
            torch.cuda.empty_cache()
        raise out_of_memory(_explain(stages, activations)) from None


@contextmanager
def sampling(
    stage: Stage,
    activations: int,
    title: str,
    steps: int,
    *,
    pictures: bool = True,
    beside: Stage | None = None,
) -> Iterator[StepCallback]:
    """Have a stage on the compute device and show its progress inside the block; yields the step callback.

    Args:
        activations, beside: see :func:`on_device`.
        title, steps, pictures: see ``host.stage_progress``.
    """
    with (
        on_device(stage, activations, beside=beside),
        host.stage_progress(title, steps, pictures=pictures) as on_step,
    ):
        yield on_step


def _is_out_of_memory(error: Exception, out_of_memory: type[Exception]) -> bool:
    # Where PyTorch has no type for it, ComfyUI's is Exception and stands for any error.
    typed = out_of_memory is not Exception and isinstance(error, out_of_memory)
    return typed or is_out_of_memory(error)


@contextmanager
def _alone(stages: Sequence[Stage], device: torch.device) -> Iterator[None]:
    """There and back, whatever happens."""
    try:
        for stage in stages:
            stage.network.to(device)
        yield
    finally:
        for stage in stages:
            stage.network.to("cpu")


@contextmanager
def _managed(
    stages: Sequence[Stage], device: torch.device, activations: int, comfy: SimpleNamespace
) -> Iterator[None]:
    """Loaded by ComfyUI, which also keeps them as long as it likes."""
    patchers = [_patcher_of(stage, device) for stage in stages]
    for stage, patcher in zip(stages, patchers, strict=True):
        weights = stage.network.parameters()
        if _is_loaded(patcher) and any(weight.device.type != device.type for weight in weights):
            # A MODEL for ComfyUI's samplers holds the same network, and was unloaded under another name.
            patcher.detach()
    # In full, because a plain module cannot run with a part of it elsewhere.
    comfy.models.load_models_gpu(patchers, memory_required=activations, force_full_load=True)
    try:
        for stage in stages:
            stage.network.to(device)  # with --novram ComfyUI leaves it where it is
        yield
    finally:
        for patcher in patchers:
            take_off_unless_loaded(patcher)


def take_off_unless_loaded(patcher: Any) -> None:
    """Take a network off the device of which ComfyUI knows a part only, or nothing, to be there."""
    if not _is_loaded(patcher):
        patcher.detach()


def _is_loaded(patcher: Any) -> bool:
    return patcher.loaded_size() >= patcher.model_size()


def _explain(stages: Sequence[Stage], activations: int) -> str:
    """``stages``: the one that ran, and one beside it."""
    name, *others = (_name(stage) for stage in stages)
    owners = " and ".join(["its weights", *(f"those of the {each}" for each in others)])
    weights = memory_of([stage.network for stage in stages])
    _, advice = _KINDS[type(stages[0])]
    device = host.compute_device()
    others_there = "closing other programs" + ("" if device.type == "cpu" else " that use the GPU")
    return (
        f"the {name} ran out of memory on {device}: {owners} take {_gigabytes(weights)}, and "
        f"this run about {_gigabytes(activations)} more. {advice} Loading with precision fp16 or bf16 halves "
        f"both; {others_there} helps too."
    )


def _name(stage: Stage) -> str:
    kind, _ = _KINDS[type(stage)]
    return f"{kind} {stage.source!r}" if stage.source else kind


def _gigabytes(size: int) -> str:
    return f"{size / 1024**3:.1f} GB"
