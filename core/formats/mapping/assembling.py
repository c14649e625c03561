"""From the tensors of a file to a network: strict, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...networks.without_memory import without_memory
from .number_types import FiniteCheck, Origin, common_type, computable, needed_type, require_number_type

Network = TypeVar("Network", bound=nn.Module)

_SHOWN = 5


def assemble(
    build: Callable[[], Network],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    origin: Origin | None = None,
) -> Network:
    """Build a network on the meta device and give it the tensors of a file as its parameters and buffers.

    Convolution weights become channels-last, the layout in which the pipelines run. A buffer that is in no
    file keeps the value that its constructor gives it, which must name its device explicitly for that.

    Args:
        build: constructor of the network.
        shapes: shape by key of everything that the file holds; checked before any tensor is read.
        tensors: the tensors by key, memory-mapped or not.
        source: named in errors.
        dtype: to which floating-point parameters are converted; None keeps theirs, or takes the narrowest
            type that holds all of them where they differ. Buffers keep theirs.
        origin: the file and the name in it of a key, for errors; None names ``source`` and the key.

    Returns:
        The network on ``device``, in evaluation mode, its parameters not requiring gradients.

    Raises:
        ValueError: missing or left-over keys, wrong shapes, or values that are not finite; names file, key,
            found and expected.
    """
    with without_memory():
        network = build()
    _check({name: tuple(value.shape) for name, value in network.state_dict().items()}, shapes, source)
    # Buffers are tables, not weights: rounded, the codes of an embedding or the angles of a position move.
    tables = {name for name, _ in network.named_buffers()}
    origin = origin or (lambda name: (source, name))
    numbers = {name for name, value in network.state_dict().items() if value.is_floating_point()}
    state: dict[str, Tensor] = {}
    check = FiniteCheck()
    for name, tensor in tensors:
        if name in numbers and not tensor.is_floating_point():
            require_number_type(*origin(name), tensor.dtype)
        stored = computable(tensor)
        state[name] = _place(stored, device, None if name in tables else dtype or needed_type(stored))
        check.add(name, stored, state[name])
    check.finish(origin)
    common = common_type(value for name, value in state.items() if name not in tables)
    if dtype is None and common is not None:
        state |= {name: _place(state[name], device, common) for name in state if name not in tables}
    network.load_state_dict(state, strict=True, assign=True)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                raise RuntimeError(
                    f"{type(module).__name__}.{name} is in no file and was built on the meta device: "
                    f"its constructor must create it on an explicit device"
                )
            setattr(module, name, buffer.to(device))
    return network.eval().requires_grad_(False)


def _place(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(
        device=device,
        dtype=dtype if tensor.is_floating_point() else None,
        memory_format=torch.channels_last if tensor.ndim == 4 else torch.preserve_format,
    )


def _check(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: str | Path
) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{source}: lacks {listed(missing)}; expected {len(expected)} tensors for its config, found "
            f"{len(found)}. The file is incomplete or was made for another config: get it or export it again"
        )
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise ValueError(
            f"{source}: holds {listed(unknown)}, which its config has no place for; expected "
            f"{len(expected)} tensors, found {len(found)}. It was made for another config: export it again"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{source}: {name} has shape {list(found[name])}, expected {list(shape)} for its config. "
                f"Weights and config belong to different models: get the file or export it again"
            )


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are besides."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
