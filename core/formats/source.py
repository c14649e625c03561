"""Weights in a file, whatever the file: names, shapes and types at once, the tensors when they are asked for.

The kind of a file is told by its first bytes, never by its name. Nothing that a file holds is ever run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .json_files import read_json
from .safetensors_io import SUFFIX, TensorFile, iterate_tensors, locate, read_tensor_file
from .torch_pickle import is_torch_file, is_torchscript, read_torch_file

_HEAD_BYTES = 32

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# First bytes of files that people put in the place of a checkpoint.
_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not downloaded"),
    (b"GGUF", "a GGUF file, the format of language models"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x89HDF", "an HDF5 file of Keras"),
    (b"<", "a web page"),
)

Read = Callable[[Collection[str]], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True, eq=False)
class WeightSource:
    """The weights of a file, or of several that belong together.

    Attributes:
        path: the file, index or folder, for messages and for what lies beside it.
        shapes, dtypes: by name, in the order of the file.
        metadata: what the file says beside its tensors.
        read: yields the named tensors on the CPU; :meth:`tensors` calls it.
        parts: of several joined sources, each behind its prefix.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, Any]
    read: Read = field(repr=False)
    parts: Sequence[tuple[str, WeightSource]] = field(default=(), repr=False)

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, all by default, on the CPU in the order of the file.

        They are memory-mapped where the file allows it: bytes are read when they are first used.

        Raises:
            ValueError: a name that the file does not have.
        """
        wanted = set(self.shapes if names is None else names)
        unknown = sorted(wanted - set(self.shapes))
        if unknown:
            raise ValueError(
                f"{self.path}: has no tensor {unknown[0]!r}; it is incomplete or of another layout. Get the "
                f"original file"
            )
        return self.read(wanted)

    def tensor(self, name: str) -> Tensor:
        """A single tensor, see :meth:`tensors`."""
        return next(tensor for _, tensor in self.tensors([name]))

    def origin(self, name: str) -> tuple[Path, str]:
        """The file in which a tensor is or should be, and its name there: for messages."""
        start = name.partition(".")[0]
        for prefix, part in self.parts:
            own = name.removeprefix(prefix)
            if prefix and name.startswith(prefix):
                return part.origin(own)
            if not prefix and any(other.partition(".")[0] == start for other in part.shapes):
                return part.origin(own)
        return self.path, name


def source_of_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> WeightSource:
    """A source of tensors that are already there, memory-mapped or not."""

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.detach()) for name, tensor in tensors.items() if name in wanted)

    return WeightSource(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        dict(metadata or {}),
        read,
    )


def join_sources(path: Path, parts: Sequence[tuple[str, WeightSource]]) -> WeightSource:
    """Several sources as one, the names of each behind a prefix (which may be empty)."""

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for prefix, part in parts:
            own = {name for name in part.shapes if prefix + name in wanted}
            yield from ((prefix + name, tensor) for name, tensor in part.read(own))

    return WeightSource(
        path,
        {prefix + name: shape for prefix, part in parts for name, shape in part.shapes.items()},
        {prefix + name: dtype for prefix, part in parts for name, dtype in part.dtypes.items()},
        {key: value for _, part in parts for key, value in part.metadata.items()},
        read,
        tuple(parts),
    )


def open_weights(path: str | Path) -> WeightSource:
    """Open a checkpoint: safetensors, a PyTorch file, TorchScript, or the index of shards of either.

    Raises:
        ValueError: no such file, a folder, another kind of file, cut short, or more than tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        path = locate(path)
    if path.name.endswith(".json"):
        return _open_index(path)
    head = _head(path)
    if is_torch_file(head):
        return _open_torch(path)
    if path.suffix != SUFFIX and not _looks_like_safetensors(head):
        raise ValueError(
            f"{path}: is not a checkpoint{_guess(head)}; expected a .safetensors, .ckpt, .pt, .pth or .bin "
            f"file with the weights of a model. Get the file again or choose another one"
        )
    return _open_safetensors(read_tensor_file(path))


def _open_torch(path: Path) -> WeightSource:
    if _head(path).startswith(b"PK") and is_torchscript(path):
        from .torchscript import open_torchscript

        return open_torchscript(path)
    tensors, metadata = read_torch_file(path)
    return source_of_tensors(path, tensors, metadata)


def _open_safetensors(file: TensorFile) -> WeightSource:
    for name, info in file.tensors.items():
        if info.dtype not in _DTYPES:
            raise ValueError(
                f"{file.path}: {name} is stored as {info.dtype}; expected one of {', '.join(_DTYPES)}. "
                f"Get the weights in half or full precision"
            )
    return WeightSource(
        file.path,
        {name: info.shape for name, info in file.tensors.items()},
        {name: _DTYPES[info.dtype] for name, info in file.tensors.items()},
        file.metadata,
        lambda wanted: iterate_tensors(file, wanted),
    )


def _open_index(path: Path) -> WeightSource:
    """An index of shards as Hugging Face writes it, of safetensors or of PyTorch files."""
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{path}: is not an index of shards; expected a JSON object with a weight_map")
    names = sorted(set(weight_map.values()))
    if all(name.endswith(SUFFIX) for name in names):
        return _open_safetensors(read_tensor_file(path))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{path}: names the shard {name!r}; shards must lie beside their index")
        if not path.with_name(name).is_file():
            raise ValueError(
                f"{path}: the shard {name} is missing; put all {len(names)} shards beside the index"
            )
    shards = [open_weights(path.with_name(name)) for name in names]
    source = join_sources(path, [("", shard) for shard in shards])
    if len(source.shapes) != sum(len(shard.shapes) for shard in shards):
        raise ValueError(f"{path}: its shards hold a tensor twice; get the files again")
    differing = sorted(set(source.shapes) ^ set(weight_map))
    if differing:
        raise ValueError(f"{path}: index and shards differ in {differing[0]!r}; get the files again")
    return source


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _looks_like_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") > 0


def _guess(head: bytes) -> str:
    if not head:
        return " (the file is empty)"
    stripped = head.lstrip()
    for magic, what in _OTHER_FILES:
        if stripped.startswith(magic):
            return f" (it looks like {what})"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return " (it looks like a text file)"
    return ""
