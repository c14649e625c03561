"""Which process of a distributed run this is, and which rows of a batch are its own."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """One of ``world`` processes that share each batch."""

    rank: int = 0
    world: int = 1

    def rows(self, batch_size: int) -> slice:
        """Its rows of a whole batch.

        Raises:
            ValueError: the batch cannot be shared out evenly.
        """
        if batch_size % self.world:
            raise ValueError(
                f"loop.batch_size is {batch_size}, which {self.world} processes cannot share out evenly: "
                f"take a multiple of {self.world}, or another number of processes"
            )
        own = batch_size // self.world
        return slice(self.rank * own, (self.rank + 1) * own)


Value = TypeVar("Value")

_PATIENCE = timedelta(days=30)  # of a process that is done for those that are not
# How launchers tell the number of processes.
_COUNTS = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}

ALONE = Process()


def current_process() -> Process:
    """This process's place in a run of ``accelerate launch`` or torchrun.

    Raises:
        ValueError: ``accelerate launch`` was asked for several processes on CPUs, and started one only.
    """
    # So accelerate's launcher leaves the environment where it was given several processes and starts one.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(os.environ) and not _COUNTS & set(os.environ):
        raise ValueError(
            "accelerate launch started one process only: without GPUs it needs --multi_gpu beside "
            "--num_processes, and no --cpu; or start with torchrun --nproc_per_node N -m unclip.cli.app"
        )
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def device_of(process: Process, cpu: bool = False) -> torch.device:
    """The accelerator of a process that shares no work with others of its machine, or the CPU."""
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", process.rank))
    return torch.device("cuda", local % torch.cuda.device_count())


def together(process: Process, values: Sequence[Value]) -> list[Value]:
    """What all processes have, in the order of their ranks, once each of them has come here.

    A launcher ends all processes when one of them fails: who has something to say says it here first.
    """
    if process.world == 1:
        return list(values)
    leave_group_at_the_end()
    if not dist.is_initialized():
        # Training goes on with this group: gradients on GPUs are not to travel through the processor.
        on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    gathered: list[Any] = [None] * process.world
    dist.all_gather_object(gathered, list(values))
    return [value for part in gathered for value in part]


@functools.cache
def leave_group_at_the_end() -> None:
    """Have this process leave its group before the interpreter ends; to be called before anyone makes it.

    Gloo's threads, left to that end, now and then abort a process that is done. They end with the last
    reference to the group. Functions of torch.distributed.nn have one as their default where they are
    imported while there is a group, as DDP does, and none where they are imported here.
    """
    importlib.import_module("torch.distributed.nn.functional")
    atexit.register(_leave)


def _leave() -> None:
    if not dist.is_initialized():  # accelerate may have ended it
        return
    group, processor = dist.group.WORLD, torch.device("cpu")
    # The end of a group (torch 2.5) waits for gloo's threads and keeps the interpreter locked, for which a
    # thread may wait that still has a tensor. That of gloo's part does not: held by us, it is the last to go.
    gloo = group._get_backend(processor) if group and processor in group._device_types else None
    dist.destroy_process_group()
    del group, gloo


def at_first(process: Process, values: Sequence[Value]) -> list[Value] | None:
    """What all processes have, as :func:`together`, at the first of them; None at the others."""
    if process.world == 1:
        return list(values)
    together(process, ())
    gathered: list[Any] | None = [None] * process.world if process.rank == 0 else None
    dist.gather_object(list(values), gathered)
    return None if gathered is None else [value for part in gathered for value in part]
