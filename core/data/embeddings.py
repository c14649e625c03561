"""CLIP embeddings made before: clip-retrieval's folders, and the shards of ``unclip embed``."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARDS = "embeddings-*.safetensors"


@dataclass(frozen=True)
class EmbeddedPicture:
    """z_i [D] float32, z_t likewise where it was kept, and the caption."""

    image: np.ndarray
    text: np.ndarray | None
    caption: str


class EmbeddingSource:
    """Image embeddings with their captions.

    Attributes:
        dim: D.
        space_id: of the CLIP space they are of; empty where the files do not tell.
        groups: rows of each file, in order.
    """

    def __init__(self, folder: Path, caption_field: str | None = None) -> None:
        """Raises ValueError where the folder holds no embeddings with captions, or files that do not fit."""
        if not folder.is_dir():
            raise ValueError(f"data.path: there is no folder {folder}")
        own = sorted(folder.glob(SHARDS))
        if own:
            self._parts = [_OwnShard(path) for path in own]
        elif (folder / "img_emb").is_dir():
            self._parts = [_npy_part(path, folder, caption_field) for path in _numbered(folder / "img_emb")]
        else:
            self._parts = []
        self.groups = tuple(len(part.captions) for part in self._parts)
        self._ends = list(itertools.accumulate(self.groups))
        if not self._parts or not self._ends[-1]:
            raise ValueError(
                f"{folder}: no embeddings; expected the shards of `unclip embed`, or the folders img_emb "
                f"(npy) and metadata (parquet) of clip-retrieval"
            )
        kinds = {(part.dim, part.space_id) for part in self._parts}
        if len(kinds) > 1:
            raise ValueError(f"{folder}: embeddings of several spaces together: {sorted(kinds)}")
        ((self.dim, self.space_id),) = kinds
        self.missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> EmbeddedPicture:
        """Raises ValueError where a row is not finite, is zero, or has no caption."""
        number = bisect.bisect_right(self._ends, index)
        part, row = self._parts[number], index - (self._ends[number] - self.groups[number])
        image = np.asarray(part.images[row], dtype=np.float32)
        if not np.isfinite(image).all() or not image.any():
            raise ValueError("its embedding is not finite, or zero")
        text = None if part.texts is None else np.asarray(part.texts[row], dtype=np.float32)
        caption = part.captions[row]
        if not caption:
            raise ValueError("its caption is empty")
        return EmbeddedPicture(image, text, caption)


@dataclass
class _Part:
    """One file: embeddings [N, D] that are read row by row, and their captions."""

    images: Any
    texts: Any
    captions: Sequence[str]
    space_id: str = ""

    @property
    def dim(self) -> int:
        return self.images.shape[1]


class _OwnShard(_Part):
    """A shard of ``unclip embed``, mapped into memory row by row."""

    def __init__(self, path: Path) -> None:
        try:
            header, start = read_header(path)
            facts = json.loads(header.pop("__metadata__")["unclip_embeddings"])
            tensors = {name: _mapped(path, start, entry) for name, entry in header.items()}
            ends = np.asarray(tensors["caption_ends"])
            texts = bytes(tensors["captions"])
            starts = [0, *ends[:-1].tolist()]
            captions = [texts[a:b].decode() for a, b in zip(starts, ends.tolist(), strict=True)]
            super().__init__(tensors["image"], tensors["text"], captions, facts["space"])
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{path} is no shard of embeddings, or damaged: {error}") from error


_TYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I64": np.int64}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is cut short")
        return json.loads(file.read(size)), 8 + size


def _mapped(path: Path, start: int, entry: dict[str, Any]) -> np.ndarray:
    first, end = entry["data_offsets"]
    if start + end > path.stat().st_size:
        raise ValueError("it is cut short")
    if first == end:
        return np.zeros(entry["shape"], _TYPES[entry["dtype"]])
    return np.memmap(
        path, _TYPES[entry["dtype"]], mode="r", offset=start + first, shape=tuple(entry["shape"])
    )


def _numbered(folder: Path) -> list[Path]:
    def number(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.stem)
        return int(digits[-1]) if digits else -1, path.name

    return sorted(folder.glob("*.npy"), key=number)


def _npy_part(path: Path, folder: Path, field: str | None) -> _Part:
    from pyarrow import ArrowInvalid, parquet  # an extra

    suffix = path.stem.removeprefix("img_emb")
    metadata = folder / "metadata" / f"metadata{suffix}.parquet"
    if not metadata.is_file():
        raise ValueError(f"{path}: its captions are not there, expected {metadata}")
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        table = parquet.read_table(metadata)
    except (ValueError, OSError, EOFError, ArrowInvalid) as error:
        raise ValueError(f"{path} or {metadata.name} cannot be read: {error}") from error
    names = ("caption", "text") if field is None else (field,)
    column = next((name for name in names if name in table.column_names), None)
    if column is None:
        raise ValueError(
            f"{metadata}: no column {' or '.join(names)} among {', '.join(table.column_names)}; name that of "
            f"the captions in data.caption_field"
        )
    captions = [(value or "").strip() for value in table.column(column).to_pylist()]
    if images.ndim != 2 or images.dtype.kind != "f" or len(images) != len(captions):
        raise ValueError(
            f"{path}: embeddings {images.dtype} {list(images.shape)} for {len(captions)} captions, expected "
            f"numbers [{len(captions)}, D]"
        )
    texts = folder / "text_emb" / f"text_emb{suffix}.npy"
    return _Part(images, np.load(texts, mmap_mode="r") if texts.is_file() else None, captions)
