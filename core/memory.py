"""How much memory a value holds (a tensor, a network, or a dataclass of such), what is free, what ran out."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class InMemory:
    """A value that can tell how much memory it holds, for caches that let go of the largest first."""

    def get_ram_usage(self) -> int:
        """Bytes, in the words of ComfyUI's cache (``comfy_execution/caching.py``, ``RAMPressureCache``)."""
        return memory_of(self)


def memory_of(value: object) -> int:
    """Bytes of all tensors in a value: a tensor, a module, or a dataclass, mapping, tuple or list of such.

    Counted by storage: what two tensors share counts once, and a view counts the whole that it keeps alive.
    """
    storages = (tensor.untyped_storage() for tensor in _tensors(value))
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


# What CUDA's libraries, PyTorch on a CPU and other backends say of it in errors that have no type for it.
# "Unable to find an engine" is left out: cuDNN says so for other reasons too.
_OUT_OF_MEMORY = re.compile(
    "out of memory|allocate memory|not enough memory|_STATUS_ALLOC_FAILED|Storage size calculation overflowed"
)
# torch tells of it wherever the training thread is just then: where a checkpoint is written, in that error.
_WORKER_ENDED = re.compile(r"DataLoader worker .*?(killed by signal: \w+|exited unexpectedly)")
_SHOWN = 200  # characters of torch's message


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of some device does not hold what was asked for."""
    typed = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return typed or _OUT_OF_MEMORY.search(str(error)) is not None


def lack_of_memory(error: BaseException) -> str | None:
    """What an error tells of memory that ran out, as the beginning of a message; None for other errors.

    The system ends a process where memory runs out, and torch then tells of a data worker only that it ended.
    """
    ended = _WORKER_ENDED.search(str(error))
    if ended is not None:
        return f"a process that reads data was ended from outside, mostly because memory ran out ({ended[0]})"
    first = textwrap.shorten(str(error).partition("\n")[0], _SHOWN, placeholder=" …").rstrip(".")
    return f"out of memory ({first or type(error).__name__})" if is_out_of_memory(error) else None


_MEMINFO = Path("/proc/meminfo")
_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where there is no telling."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return min([1024 * int(value.split()[0]), *_left_in_groups()])
    return None


def _left_in_groups() -> Iterator[int]:
    """Bytes left to the control groups (version 2) that this process is in, as a container has one; of those
    that have a limit. What they hold of files can be let go, and counts as free."""
    try:
        own = _OWN_GROUP.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    path = next((line.removeprefix("0::/") for line in own if line.startswith("0::/")), None)
    if path is None:
        return
    group = _GROUPS / path
    for folder in (group, *group.parents):
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(0, limit - used + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):  # no such group, or one without a limit ("max")
            continue
