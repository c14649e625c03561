"""Weights in a file, whatever the file: names, shapes and types at once, the tensors when they are asked for.

The kind of a file is told by its first bytes, never by its name. Nothing that a file holds is ever run.
"""

from __future__ import annotations

from pathlib import Path

from .json_files import read_json
from .safetensors_io import DTYPES, SUFFIX, TensorFile, iterate_tensors, locate, read_tensor_file
from .torch_pickle import is_torch_file, is_torchscript, read_torch_file
from .torchscript import open_torchscript
from .weight_source import WeightSource, join_sources, source_of_tensors, without_wrappers

_HEAD_BYTES = 32

# First bytes of files that people put in the place of a checkpoint.
_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: the weights themselves were not downloaded"),
    (b"GGUF", "a GGUF file, the format of language models"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x89HDF", "an HDF5 file of Keras"),
    (b"<", "a web page"),
)


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
    shards = [_open(path.with_name(name)) for name in names]
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
