"""Which numbers weights may be: real and finite, in one floating-point type that can be computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

Origin = Callable[[str], tuple[str | Path, str]]
"""From the name of a tensor to the file that holds it and its name there, for messages."""

# Types for keeping weights only. Every value of theirs is one of float16's.
_STORED_AS_HALF = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_number_type(path: str | Path, name: str, dtype: torch.dtype) -> None:
    """Raise a ValueError unless a tensor of a file is of a type that weights can have."""
    if dtype in _COMPUTED or dtype in _STORED_AS_HALF:
        return
    kind = str(dtype).removeprefix("torch.")
    what = "complex numbers" if dtype.is_complex else f"{kind}, which only a scale makes numbers again"
    if not dtype.is_complex and not dtype.is_floating_point:
        what = f"whole numbers ({kind}), as quantised models have them"
    raise ValueError(
        f"{path}: {name} holds {what}; expected weights in fp16, bf16 or fp32. Get the full weights of the "
        f"model"
    )


def computable(tensor: Tensor) -> Tensor:
    """Float8, in which nothing computes, as float16, which holds every value of it; others as they are."""
    return tensor.half() if tensor.dtype in _STORED_AS_HALF else tensor


def needed_type(tensor: Tensor) -> torch.dtype | None:
    """float32 for float64, which some tools write without need and which computes several times as slowly."""
    return torch.float32 if tensor.dtype == torch.float64 else None


def common_type(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The narrowest floating-point type that holds the values of all floating-point tensors."""
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return reduce(torch.promote_types, kinds) if kinds else None


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(_extremes(tensor).isfinite().all()) if _has_values(tensor) else True


class FiniteCheck:
    """Looks at each weight once while it is loaded, and refuses what is not finite at the end.

    The smallest and the largest value tell: NaN takes part in both. That is one pass at the speed of memory
    (0.2 to 0.4 s a GB on two CPU cores); on a GPU all answers are fetched together. It reads what the first
    use would read from a mapped file.
    """

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._limits: dict[str, torch.dtype] = {}

    def add(self, name: str, original: Tensor, placed: Tensor) -> None:
        """Look at a tensor of a file, which on its way became ``placed``."""
        narrowed = torch.promote_types(original.dtype, placed.dtype) != placed.dtype
        looked_at = original if narrowed else placed
        if placed.is_floating_point() and _has_values(looked_at):
            self._found[name] = _extremes(looked_at)
            if narrowed:
                self._limits[name] = placed.dtype

    def finish(self, origin: Origin) -> None:
        """Raise a ValueError that names file and tensor where a value is not finite, or became so."""
        by_device: dict[torch.device, list[str]] = {}
        for name, found in self._found.items():
            by_device.setdefault(found.device, []).append(name)
        for names in by_device.values():
            table = torch.stack([self._found[name] for name in names]).cpu()  # [N, 2]
            for name, row in zip(names, table, strict=True):
                self._require(name, row, origin)

    def _require(self, name: str, extremes: Tensor, origin: Origin) -> None:
        if not bool(extremes.isfinite().all()):
            path, key = origin(name)
            raise ValueError(
                f"{path}: {key} holds NaN or infinite values, so nothing could be made with it. The file is "
                f"damaged, or was saved after its training had diverged: get it again or an earlier one"
            )
        narrow = self._limits.get(name)
        if narrow is not None and float(extremes.abs().max()) > torch.finfo(narrow).max:
            path, key = origin(name)
            raise ValueError(
                f"{path}: {key} has values up to {float(extremes.abs().max()):.3g}, beyond what "
                f"{str(narrow).removeprefix('torch.')} can hold; choose the precision fp32 or bf16"
            )


def _has_values(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and not tensor.is_meta


def _extremes(tensor: Tensor) -> Tensor:
    """The smallest and the largest value, [2] float32; both NaN where any is."""
    return torch.stack(torch.aminmax(tensor.detach())).float()
