"""Which floating-point type networks run in: one rule for nodes, command line and Python."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["auto", "fp32", "fp16", "bf16"]

NUMBER_FORMATS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
PRECISIONS = ("auto", *NUMBER_FORMATS)

# Flags by which Linux names instructions that multiply bfloat16: AMX and AVX-512 on x86, BF16 on Arm.
# Emulated bfloat16 (plain AVX-512, AVX2) is no faster than float32.
_BF16_CPU_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
# PyTorch's own checks of x86, on every system; releases before 2.6 lack some.
_BF16_CPU_CHECKS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def choose_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """The type for a precision on a device; ``"auto"`` is the fastest one that is safe there.

    ``"auto"`` is fp16 on CUDA, bf16 on a CPU that multiplies it in hardware, and fp32 elsewhere.

    Raises:
        ValueError: an unknown precision.
    """
    require_precision(precision)
    if precision in NUMBER_FORMATS:
        return NUMBER_FORMATS[precision]
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.float16
    if kind == "cpu" and cpu_has_fast_bf16():
        return torch.bfloat16
    return torch.float32


def require_precision(precision: str, name: str = "precision") -> None:
    """Raise a ValueError, by the name of what gave it, for a precision that is none."""
    if precision not in PRECISIONS:
        raise ValueError(f"{name}: found {precision!r}, expected one of {', '.join(PRECISIONS)}")


def has_accelerator() -> bool:
    """Whether PyTorch computes on anything but the CPU here. Before 2.6 it has no one word for that."""
    if hasattr(torch, "accelerator"):
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


def double(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device of the values has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def require_weights(dtype: torch.dtype) -> torch.dtype:
    """A type that weights can have as they run; a ValueError for anything else."""
    known = (*NUMBER_FORMATS.values(), torch.float64)
    if dtype not in known:
        raise ValueError(f"dtype: found {dtype!r}, expected none or one of {', '.join(map(str, known))}")
    return dtype


def as_device(device: torch.device | str) -> torch.device:
    """A device of this machine.

    Raises:
        ValueError: no device of PyTorch's, or one that is not here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"device: found {device!r}, which cannot be used here ({reason}); use cpu, cuda or mps"
        ) from error
    return found


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 no slower than float32: of CPUs not all, others are taken to."""
    return torch.device(device).type != "cpu" or cpu_has_fast_bf16()


def precision_of(networks: Iterable[nn.Module]) -> str:
    """What networks are in: ``"fp32"``, ``"fp16"`` or ``"bf16"``, or several, joined by " and "."""
    names = {dtype: name for name, dtype in NUMBER_FORMATS.items()}
    found = {weight.dtype for network in networks for weight in network.parameters()}
    found = {dtype for dtype in found if dtype.is_floating_point}
    return " and ".join(sorted(names.get(dtype, str(dtype).removeprefix("torch.")) for dtype in found))


@cache
def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, and PyTorch's oneDNN lets it."""
    in_hardware = any(getattr(torch.cpu, check, bool)() for check in _BF16_CPU_CHECKS)
    return (in_hardware or bool(_BF16_CPU_FLAGS & _cpu_flags())) and _onednn_has_bf16()


def _onednn_has_bf16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())


def _cpu_flags() -> frozenset[str]:
    """Instruction set extensions of the first core; empty where the system does not list them in a file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, Arm
            return frozenset(values.split())
    return frozenset()
