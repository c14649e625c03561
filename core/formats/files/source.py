"""Weights in a file, whatever the file: names, shapes and types at once, the tensors when they are asked for.

The kind of a file is told by its first bytes, never by its name. Nothing that a file holds is ever run.
"""

from __future__ import annotations

from pathlib import Path

from .kinds import guess, head_of
from .safetensors_io import DTYPES, SUFFIX, TensorFile, iterate_tensors, locate, read_tensor_file
from .shards import read_shard_index
from .torch_pickle import is_torch_file, is_torchscript, read_torch_file
from .torchscript import open_torchscript
from .weight_source import WeightSource, join_sources, source_of_tensors, without_wrappers


def open_weights(path: str | Path) -> WeightSource:
    """Open a checkpoint: safetensors, a PyTorch file, TorchScript, or the index of shards of either.

    Raises:
        ValueError: no such file, a folder, another kind of file, cut short, or more than tensors in it.
    """
    return without_wrappers(_open(Path(path)))


def _open(path: Path) -> WeightSource:
    if not path.is_file():
        path = locate(path)
    if path.name.endswith(".json"):
        return _open_index(path)
    head = head_of(path)
    if is_torch_file(head):
        return _open_torch(path)
    if path.suffix != SUFFIX and not _looks_like_safetensors(head):
        raise ValueError(
            f"{path}: is not a checkpoint{guess(head)}; expected a .safetensors, .ckpt, .pt, .pth or .bin "
            f"file with the weights of a model. Get the file again or choose another one"
        )
    return _open_safetensors(read_tensor_file(path))


def _open_torch(path: Path) -> WeightSource:
    if head_of(path).startswith(b"PK") and is_torchscript(path):
        return open_torchscript(path)
    tensors, metadata = read_torch_file(path)
    return source_of_tensors(path, tensors, metadata)


def _open_safetensors(file: TensorFile) -> WeightSource:
    for name, info in file.tensors.items():
        if info.dtype not in DTYPES:
            raise ValueError(
                f"{file.path}: {name} is stored as {info.dtype}; expected one of {', '.join(DTYPES)}. "
                f"Get the weights in half or full precision"
            )
    return WeightSource(
        file.path,
        {name: info.shape for name, info in file.tensors.items()},
        {name: DTYPES[info.dtype] for name, info in file.tensors.items()},
        file.metadata,
        lambda wanted: iterate_tensors(file, wanted),
    )


def _open_index(path: Path) -> WeightSource:
    """An index of shards, of safetensors or of PyTorch files."""
    index = read_shard_index(path)
    if all(shard.suffix == SUFFIX for shard in index.shards):
        return _open_safetensors(read_tensor_file(path))
    shards = [_open(shard) for shard in index.shards]
    source = join_sources(path, [("", shard) for shard in shards])
    if len(source.shapes) != sum(len(shard.shapes) for shard in shards):
        raise ValueError(f"{path}: its shards hold a tensor twice; get the files again")
    differing = sorted(set(source.shapes) ^ set(index.weight_map))
    if differing:
        raise ValueError(f"{path}: index and shards differ in {differing[0]!r}; get the files again")
    return source


def _looks_like_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") > 0
