"""Which floating-point type a network runs in."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "fp16", "bf16"]

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Flags by which Linux names instructions that multiply bfloat16: AMX and AVX-512 on x86, BF16 on Arm.
# Emulated bfloat16 (plain AVX-512, AVX2) is no faster than float32.
_BF16_CPU_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


def resolve_dtype(precision: Precision | str, device: torch.device | str) -> torch.dtype:
    """The type for a precision on a device; ``"auto"`` is the fastest one that is safe there.

    ``"auto"`` is fp16 on CUDA, bf16 on a CPU that multiplies it in hardware, and fp32 elsewhere.

    Raises:
        ValueError: an unknown precision.
    """
    if precision in PRECISIONS:
        return PRECISIONS[precision]
    if precision != "auto":
        raise ValueError(f"precision {precision!r} is not known; choose one of auto, {', '.join(PRECISIONS)}")
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.float16
    if kind == "cpu" and cpu_has_fast_bf16():
        return torch.bfloat16
    return torch.float32


@cache
def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(_BF16_CPU_FLAGS & _cpu_flags())


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
