"""Several processes as one: who they are, what they share, and what they agree on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.process import current_process, leave_group_at_the_end
from ..precision import has_accelerator, has_fast_bf16

if TYPE_CHECKING:
    from accelerate import Accelerator

# What is trained on by data parallelism, the same weights in every process.
_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU")


def make_accelerator(
    precision: str, cpu: bool, log_with: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """The processes of this run as accelerate sees them.

    Args:
        precision: as ``LoopConfig`` has it.
        log_with: names of trackers, which write to ``folder`` where they write files.

    Raises:
        ValueError: it was launched for another kind of parallelism than data parallelism, or the precision
            does not run here.
    """
    from accelerate import Accelerator  # an extra, needed for training only
    from accelerate.state import AcceleratorState

    for name in log_with:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"loop.log_with names {name}, which is not installed: pip install {name}, or take it out"
            )
    process = current_process()
    # Without a GPU accelerate takes gloo only where it is told to take the CPU.
    cpu = cpu or (process.world > 1 and not has_accelerator())
    if precision == "auto":
        on_cpu = cpu or not has_accelerator()
        precision = "bf16" if not on_cpu or has_fast_bf16("cpu") else "no"
    if process.world > 1:
        leave_group_at_the_end()
    AcceleratorState._reset_state()  # the stages of a system need not have the same precision
    try:
        accelerator = Accelerator(
            mixed_precision=precision, cpu=cpu, log_with=list(log_with) or None, project_dir=folder
        )
    except ValueError as error:
        raise ValueError(f"loop.precision is {precision}, which does not run here: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate takes fp32 without a word
        raise ValueError(
            'loop.precision is fp16, which does not run here: on a CPU choose "bf16", or "no" for fp32'
        )
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind not in _DATA_PARALLEL:
        raise ValueError(
            f"accelerate was started for {kind}, which is not how training runs: take torchrun, or "
            f'accelerate launch --multi_gpu, and loop.parallel = "fsdp" where memory is short'
        )
    if accelerator.num_processes != process.world:
        raise ValueError(
            f"accelerate runs {accelerator.num_processes} processes, but the launcher started "
            f"{process.world}: start with torchrun --nproc_per_node N -m unclip.cli.app …"
        )
    return accelerator


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; each process's loss of all of them gives its rows their part of the gradient."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.own = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        first = dist.get_rank() * context.own
        return gradient[first : first + context.own]


def gather_rows(rows: Tensor) -> Tensor:
    """[B, D] of every process → [world·B, D], with gradients; as it is without a distributed run.

    DDP takes the mean over processes of the gradients that this makes, which are those of a loss over all
    rows where each process computes that loss.
    """
    return _GatherRows.apply(rows) if dist.is_available() and dist.is_initialized() else rows


def mean_over_processes(values: Tensor) -> Tensor:
    """Each value's mean over all processes; as it is without a distributed run."""
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
