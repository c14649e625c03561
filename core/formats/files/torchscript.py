"""The tensors of a TorchScript archive, such as OpenAI's ``ViT-L-14.pt``; its program is never run.

An archive is a zip: ``data.pkl`` is a pickle of the tree of modules, ``data/0``, ``data/1``, … are the bytes
of the tensors, ``code/`` is the program. The pickle is read by an unpickler that knows nothing but tensors,
plain containers, and modules as bags of attributes (torch/csrc/jit/serialization/pickler.cpp writes it).
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .weight_source import WeightSource

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class _Storage:
    """Bytes in the archive."""

    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class _TensorInfo:
    """A tensor that has not been read yet: a view of a storage, in numbers of elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """A module of the program: its parameters, buffers, submodules and plain attributes."""

    attributes: dict[str, Any]

    def __new__(cls) -> _Module:  # all that a pickle calls where a module has nothing in it
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state) if isinstance(state, Mapping) else {}


def open_torchscript(path: str | Path) -> WeightSource:
    """Open an archive; tensors are named by the path of their module, as a state dict names them.

    Raises:
        ValueError: not a TorchScript archive, damaged, or its pickle holds more than tensors and containers.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(path, archive)
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if max(sizes.values()) > path.stat().st_size:  # torch stores as it is, and does not compress
                raise _damaged(path, "a part of it is larger than the whole file")
            content = archive.read(f"{root}/data.pkl")
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        module = _Unpickler(content).load()
    except _RefusedError as error:
        raise ValueError(
            f"{path}: holds {error} beside tensors, which only running its code could restore; nothing of it "
            f"was run. Get the original file, or the model as .safetensors"
        ) from error
    except _BROKEN_PICKLE as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    tensors = dict(_walk(module, "", set()))
    for name, info in tensors.items():
        _check(path, name, info, sizes.get(f"{root}/data/{info.storage.key}"))

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        with zipfile.ZipFile(path) as opened:
            for name, info in tensors.items():
                if name in wanted:
                    yield name, _read(path, opened, root, info)

    return WeightSource(
        path,
        {name: info.shape for name, info in tensors.items()},
        {name: info.storage.dtype for name, info in tensors.items()},
        {},
        read,
    )


class _RefusedError(Exception):
    """A name in a pickle that stands for code."""


class _Unpickler(pickle.Unpickler):
    """Builds modules, tensors and plain containers; any other name is an error, never a call."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        found = _KNOWN.get((module, name))
        if found is None:
            raise _RefusedError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as length):
                return _Storage(key, dtype, length)
        raise pickle.UnpicklingError(f"{pid!r} is not a storage")


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> _TensorInfo:
    """What stands for ``torch._utils._rebuild_tensor_v2``; gradients and hooks follow and are left out."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor is not described by a storage and numbers")
    return _TensorInfo(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: _TensorInfo, *_: Any) -> _TensorInfo:
    return data


def _same(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.jit._pickle", "build_intlist"): _same,
    ("torch.jit._pickle", "build_doublelist"): _same,
    ("torch.jit._pickle", "build_boollist"): _same,
    ("torch.jit._pickle", "build_tensorlist"): _same,
    ("torch.jit._pickle", "restore_type_tag"): _same,
}


def _root(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder that holds everything in the archive."""
    for name in archive.namelist():
        found = re.fullmatch(r"([^/]+)/data\.pkl", name)
        if found:
            return found[1]
    raise ValueError(
        f"{path}: is a zip archive without data.pkl, so it is not a TorchScript file. Get the original file"
    )


def _walk(value: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, _TensorInfo]]:
    """Tensors by dotted name, each module once; lists of modules have their numbers as attributes already."""
    if isinstance(value, _TensorInfo):
        yield prefix, value
    elif isinstance(value, _Module) and id(value) not in seen:
        seen.add(id(value))
        for name, attribute in value.attributes.items():
            yield from _walk(attribute, f"{prefix}.{name}" if prefix else str(name), seen)


def _check(path: Path, name: str, info: _TensorInfo, size: int | None) -> None:
    last = info.offset + sum((n - 1) * step for n, step in zip(info.shape, info.stride, strict=True))
    needed = 0 if 0 in info.shape else (last + 1) * info.storage.dtype.itemsize
    if size is None or size < needed:
        raise _damaged(path, f"{name} needs {needed:,} bytes and has {size or 0:,}")


def _read(path: Path, archive: zipfile.ZipFile, root: str, info: _TensorInfo) -> Tensor:
    try:
        content = bytearray(archive.read(f"{root}/data/{info.storage.key}"))
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, str(error)) from error
    if not content:
        return torch.empty(info.shape, dtype=info.storage.dtype)
    flat = torch.frombuffer(content, dtype=info.storage.dtype)
    return torch.as_strided(flat, info.shape, info.stride, info.offset)


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: is cut short or damaged: it cannot be read as a TorchScript file ({reason}). Download or "
        f"copy the file again"
    )
