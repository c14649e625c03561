"""Safetensors files and sharded sets of them: headers, checks, memory-mapped reading, atomic writing.

Large files are split the way Hugging Face splits them: shards ``name-00001-of-00003.safetensors`` and an
index ``name.safetensors.index.json`` with a ``weight_map`` of tensor names to shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...writing import remove_leftovers, take_free, unfinished_path
from .kinds import guess, head_of
from .shards import read_shard_index

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
MAX_HEADER = 100_000_000  # the limit of the format (safetensors, README "Format")

MAX_TENSORS = 50_000
"""Of a file: many times what any network here has. Looking at millions of names would take minutes."""

DTYPES: dict[str, torch.dtype] = {
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
"""The number types that are read, by their names in a header."""

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_DIGEST = "digest"
# A tensor's entry in the header: name, type, shape, offsets. Generous: shards only end a little earlier.
_HEADER_BYTES_PER_TENSOR = 256


@dataclass(frozen=True)
class TensorInfo:
    """What a header tells about one tensor; ``dtype`` in safetensors' words, such as ``"F16"``."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path


@dataclass(frozen=True)
class TensorFile:
    """Header of a safetensors file, or of all the shards behind one index.

    Attributes:
        path: the file, or the index.
        files: the file itself, or the shards.
        metadata: free-form strings; of a sharded set those of the index.
        tensors: by name, in the order of the file.
    """

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def locate(path: str | Path) -> Path:
    """The file to open for what was named: a safetensors file, an index, a shard, or a name without suffix.

    Raises:
        ValueError: there is no such file, or it is a shard without its index.
    """
    path = Path(path)
    if not path.name:  # "." and "/"
        path = path.resolve()
        if not path.name:
            raise ValueError(f"{path}: is the whole disk; name a checkpoint, a file or a folder")
    shard = _SHARD.match(path.name)
    index = path.with_name(shard["stem"] + INDEX_SUFFIX) if shard else _index_of(path)
    if (shard or not path.is_file()) and index.is_file():
        return index
    if shard and path.is_file():
        raise ValueError(
            f"{path}: is shard {int(shard['number'])} of {int(shard['count'])}, and the index {index.name} "
            f"is missing; put the index and all shards into one folder"
        )
    if path.is_file():
        return path
    if path.with_name(path.name + SUFFIX).is_file():
        return path.with_name(path.name + SUFFIX)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; expected a {SUFFIX} file. Choose a file in it; a folder with bundle.json "
            f"or model_index.json is a bundle, and one with config.json beside weights is a stage"
        )
    raise ValueError(f"{path}: there is no such file; choose an existing {SUFFIX} file or its index")


def read_tensor_file(path: str | Path) -> TensorFile:
    """Read and check the header of a file or a sharded set, without its tensors.

    Raises:
        ValueError: missing, not safetensors, cut short, or an index that does not fit its shards.
    """
    path = locate(path)
    if path.name.endswith(".json"):
        return _read_index(path)
    metadata, tensors = _read_header(path)
    return TensorFile(path, (path,), metadata, tensors)


def iterate_tensors(source: TensorFile, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """All tensors, or those of some names, on the CPU, memory-mapped: read when they are first used."""
    for file in source.files:
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                for name, info in source.tensors.items():
                    if info.file == file and (names is None or name in names):
                        yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{file}: cannot be read as safetensors ({error}); get the file again"
            ) from error


def write_tensor_file(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
    *,
    new: bool = False,
) -> Path:
    """Write one file, or shards and an index when it would be larger than ``max_shard_bytes``.

    Every file is written beside its place and renamed once all are whole and on the disk, the index last;
    what an older save of the same name left over is removed at the end. On failure nothing new stays behind.

    Args:
        path: ends in ``.safetensors``; the index of a sharded set gets ``.index.json`` behind it.
        max_shard_bytes: upper limit of a file's size; a single larger tensor still gets a file of its own.
        new: replace and remove nothing; for one file.

    Returns:
        The file or the index.

    Raises:
        FileExistsError: with ``new``, where ``path`` is there, maybe written meanwhile by another process.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: the name of a checkpoint must end in {SUFFIX}")
    # The header of a shard holds the metadata too, with each character in at most 6 bytes ("\\u1234").
    reserved = 6 * sum(len(key) + len(value) for key, value in metadata.items()) + 4096
    shards = _split(tensors, None if max_shard_bytes is None else max_shard_bytes - reserved)
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(shards) == 1:
        with _Replacement(new) as replacement:
            replacement.add(path, lambda target: save_file(shards[0], target, dict(metadata)))
        if not new:
            _remove_older(path, keep={path})
        return path

    names = [_shard_name(path, number, len(shards)) for number in range(1, len(shards) + 1)]
    # Shards and index of one save carry one digest: a mixture of two saves is found out.
    digest = _digest(tensors)
    index = {
        "metadata": {**metadata, _DIGEST: digest, "total_size": _nbytes(tensors)},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    with _Replacement() as replacement:
        for name, shard in zip(names, shards, strict=True):
            write = partial(save_file, shard, metadata={**metadata, _DIGEST: digest})
            replacement.add(path.with_name(name), write)
        replacement.add(_index_of(path), lambda target: target.write_text(_json(index), encoding="utf-8"))
    _remove_older(path, keep={_index_of(path), *(path.with_name(name) for name in names)})
    return _index_of(path)


def saved_files(path: Path) -> set[Path]:
    """The files of saves under a name that are there: one file, or an index and shards."""
    if not path.parent.is_dir():
        return set()
    stem = path.name.removesuffix(SUFFIX)
    shards = {
        file
        for file in path.parent.iterdir()
        if (shard := _SHARD.match(file.name)) is not None and shard["stem"] == stem
    }
    return shards | {file for file in (path, _index_of(path)) if file.exists()}


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Replacement() as replacement:
        replacement.add(path, lambda target: target.write_text(text, encoding="utf-8"))


class TooManyTensorsError(ValueError):
    """A file that no network here could have made."""


def require_tensor_count(path: Path, count: int) -> None:
    """Raise a ValueError where a file holds more tensors than any network has.

    Raises:
        TooManyTensorsError: more than ``MAX_TENSORS``.
    """
    if count > MAX_TENSORS:
        raise TooManyTensorsError(
            f"{path}: holds {count:,} tensors, expected at most {MAX_TENSORS:,}. It is no checkpoint of a "
            f"network that unclip knows, or is damaged: choose another file"
        )


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors, checked against the size of the file (safetensors, README "Format")."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER + 1
        start = file.read(1)
        if length > MAX_HEADER or start != b"{":
            raise ValueError(
                f"{path}: is not a safetensors file{guess(head_of(path))}; expected a checkpoint saved as "
                f"{SUFFIX}. Get the file again or choose another one"
            )
        header = start + file.read(length - 1)
    if len(header) < length:
        raise _cut_short(path, f"its header needs {8 + length:,} bytes, the file has {size:,}")
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", None) or {}
        require_tensor_count(path, len(entries))
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise TypeError("metadata that is not text")
        tensors = {
            name: _tensor_info(entry, path)
            for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0])
        }
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except TooManyTensorsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path}: has a damaged safetensors header ({error}); get the file again") from error
    if 8 + length + end > size:
        raise _cut_short(path, f"its tensors need {8 + length + end:,} bytes, the file has {size:,}")
    return metadata, tensors


def _tensor_info(entry: Mapping[str, Any], path: Path) -> TensorInfo:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise TypeError(f"a tensor of type {dtype!r} and shape {shape!r}")
    stored = DTYPES.get(dtype)
    if stored is not None and prod(shape) * stored.itemsize != end - start:
        raise ValueError(f"{dtype} of shape {list(shape)} in {end - start:,} bytes")
    return TensorInfo(dtype, tuple(shape), end - start, path)


def _read_index(path: Path) -> TensorFile:
    index = read_shard_index(path)
    tensors: dict[str, TensorInfo] = {}
    for file in index.shards:
        shard_metadata, found = _read_header(file)
        if shard_metadata.get(_DIGEST) != index.metadata.get(_DIGEST):
            raise ValueError(
                f"{file}: belongs to another save than its index {path.name}; "
                f"get all shards and the index again"
            )
        expected = {key for key, shard in index.weight_map.items() if shard == file.name}
        if expected != set(found):
            key = sorted(expected ^ set(found))[0]
            where = "lacks" if key in expected else "has the unlisted tensor"
            raise ValueError(f"{file}: {where} {key!r}, unlike its index says; get the files again")
        tensors.update(found)
    return TensorFile(path, index.shards, index.metadata, tensors)


class _Replacement:
    """Files written beside their places that all take them, in the order given, when the block ends well.

    Args:
        new: places that nothing has; raises a FileExistsError at the first that something has.
    """

    def __init__(self, new: bool = False) -> None:
        self._take: Callable[[Path, Path], object] = take_free if new else Path.replace
        self._pending: list[tuple[Path, Path]] = []

    def __enter__(self) -> _Replacement:
        return self

    def add(self, path: Path, write: Callable[[Path], object]) -> None:
        remove_leftovers(path.parent)
        # In a folder of its own: safetensors writes to a file of a name that it draws, which a process that
        # is killed leaves behind, and the next one could not tell whose it is.
        unfinished = unfinished_path(path) / path.name
        self._pending.append((unfinished, path))
        unfinished.parent.mkdir()
        unfinished.touch()
        mode = unfinished.stat().st_mode  # what the umask makes of it; safetensors makes private files
        try:
            write(unfinished)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(f"{path}: cannot be written ({error})") from error
        unfinished.chmod(mode)
        with unfinished.open("rb+") as file:  # a rename must not reach the disk before the content
            os.fsync(file.fileno())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for unfinished, path in self._pending:
                    self._take(unfinished, path)
        finally:
            for unfinished, _path in self._pending:
                shutil.rmtree(unfinished.parent, ignore_errors=True)


def _split(tensors: Mapping[str, Tensor], limit: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.nbytes + _HEADER_BYTES_PER_TENSOR + len(name)
        if limit is not None and shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    return shards


def _remove_older(path: Path, keep: set[Path]) -> None:
    """Remove what an earlier save under the same name wrote and this one did not."""
    for file in saved_files(path) - keep:
        file.unlink(missing_ok=True)


def _index_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + INDEX_SUFFIX)


def _shard_name(path: Path, number: int, count: int) -> str:
    return f"{path.name.removesuffix(SUFFIX)}-{number:05d}-of-{count:05d}{SUFFIX}"


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode("utf-8"))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _cut_short(path: Path, why: str) -> ValueError:
    return ValueError(f"{path}: is cut short: {why}. Download or copy the file again")
