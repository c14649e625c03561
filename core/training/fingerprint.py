"""Which weights a file or folder holds, told from parts of it: a model of many gigabytes in a moment."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SAMPLES = 64
SAMPLE = 2**18  # bytes
_INDEX = ".index.json"
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


def fingerprint(path: Path) -> str:
    """A hash of the weights of a file, of the shards of an index, or of all weights in a folder.

    Of safetensors the tensors alone: statistics and settings in the header may be written anew. Of each file
    its length and evenly spaced parts, which no other training leaves as they are.
    """
    found = hashlib.sha256()
    for file in _files(path):
        found.update(f"{file.name}/".encode() if file != path else b"")
        _add(found, file)
    return found.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in _WEIGHTS and file.is_file())
    if not path.name.endswith(_INDEX):
        return [path]
    shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    return [path.parent / name for name in sorted(set(shards))]


def _add(found: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        start = 0
        if path.suffix == ".safetensors":
            start = 8 + int.from_bytes(file.read(8), "little")
        length = max(0, path.stat().st_size - start)
        found.update(length.to_bytes(8, "little"))
        count = min(SAMPLES, -(-length // SAMPLE))
        for number in range(count):
            last = max(0, length - SAMPLE)
            file.seek(start + (last * number // (count - 1) if count > 1 else 0))
            found.update(file.read(SAMPLE))
