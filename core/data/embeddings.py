"""CLIP embeddings made before: clip-retrieval's folders, and the shards of ``unclip embed``."""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

ESCAPED = "surrogateescape"  # names of files may be no UTF-8
SHARDS = "embeddings-*.safetensors"
MANIFEST = "embeddings.json"
MOST_OPEN = 64
"""Files that are open at a time: an epoch reads fewer, a system lets a process have about a thousand."""


@dataclass(frozen=True)
class Vectors:
    """[N, D] in a file, which is mapped into memory when a row is read, and left when many others have been.

    Attributes:
        dtype: as numpy writes it, ``"<f2"``.
        offset: where in the file they begin, in bytes.
        order: the axis that runs last in the file: ``"C"`` for D, ``"F"`` for N.
        written: when the file was, in nanoseconds.
    """

    path: Path
    dtype: str
    offset: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    written: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        """[D] float32."""
        return np.asarray(_mapped(self)[row], dtype=np.float32)


@functools.lru_cache(maxsize=MOST_OPEN)
def _mapped(vectors: Vectors) -> np.ndarray:
    return np.memmap(vectors.path, vectors.dtype, "r", vectors.offset, vectors.shape, vectors.order)


@dataclass(frozen=True)
class EmbeddedPicture:
    """A row of the data.

    Attributes:
        image: z_i [D] float32.
        texts: z_t of all rows of the file; None where it holds none.
        row: which of them is this one's.
    """

    image: np.ndarray
    caption: str
    texts: Vectors | None
    row: int

    @property
    def text(self) -> np.ndarray | None:
        """z_t [D] float32, which is read only now."""
        return None if self.texts is None else self.texts[self.row]


class EmbeddingSource:
    """Image embeddings with their captions.

    Attributes:
        dim: D.
        space_id: of the CLIP space they are of; empty where the files do not tell.
        groups: rows of each file, in order.
        missing: names of shards that `unclip embed` has not made yet, or that were taken away.
    """

    def __init__(self, folder: Path, caption_field: str | None = None) -> None:
        """Raises ValueError where the folder holds no embeddings with captions, or files that do not fit."""
        if not folder.is_dir():
            raise ValueError(f"data.path: there is no folder {folder}")
        own = sorted(folder.glob(SHARDS))
        if own:
            if caption_field is not None:
                raise ValueError(
                    f"data.caption_field is {caption_field!r}, but {folder} holds shards of `unclip embed`, "
                    f"which chose the captions: leave it out"
                )
            self._parts = [_own_part(path) for path in own]
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
        self.missing = _missing(folder, {path.name for path in own}) if own else ()

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        """The picture's name; the number of the row where the files do not tell."""
        part, row = self._place(index)
        return str(index) if part.keys is None else part.keys[row]

    def read(self, index: int) -> EmbeddedPicture:
        """Raises ValueError where a row is not finite, is zero, or has no caption."""
        part, row = self._place(index)
        image = part.images[row]
        if not np.isfinite(image).all() or not image.any():
            raise ValueError("its embedding is not finite, or zero")
        caption = part.captions[row]
        if not caption:
            raise ValueError("its caption is empty")
        return EmbeddedPicture(image, caption, part.texts, row)

    def _place(self, index: int) -> tuple[_Part, int]:
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number] - self.groups[number])


class _Texts(Sequence[str]):
    """Texts as a shard has them: one after the other in UTF-8, and where each ends, int64."""

    def __init__(self, content: bytes, ends: bytes, errors: str) -> None:
        self._errors, self._content = errors, content
        self._ends = np.frombuffer(ends, np.int64)
        steps = np.diff(self._ends, prepend=0, append=len(content))
        if (steps < 0).any() or steps[-1]:
            raise ValueError("its texts do not end where it says")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        first = self._ends[row - 1] if row else 0
        return self._content[first : self._ends[row]].decode(errors=self._errors)


@dataclass
class _Part:
    """One file: embeddings [N, D] that are read row by row, their captions, and the pictures' names."""

    images: Vectors
    texts: Vectors | None
    captions: Sequence[str]
    keys: Sequence[str] | None = None
    space_id: str = ""

    @property
    def dim(self) -> int:
        return self.images.shape[1]


def shard_file(number: int) -> str:
    """The name of a shard of ``unclip embed``."""
    return f"embeddings-{number:06}.safetensors"


def _missing(folder: Path, found: Collection[str]) -> tuple[str, ...]:
    """The shards that the folder's manifest promises and that are not there."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shards = range(-(-facts["pictures"] // facts["rows"]))
    except (OSError, LookupError, TypeError, ValueError):  # shards that somebody has put together
        return ()
    return tuple(name for name in map(shard_file, shards) if name not in found)


def _own_part(path: Path) -> _Part:
    """A shard of ``unclip embed``."""
    try:
        header, start = read_header(path)
        facts = json.loads(header.pop("__metadata__")["unclip_embeddings"])
        if start + max(entry["data_offsets"][1] for entry in header.values()) > path.stat().st_size:
            raise ValueError("it is cut short")
        images, texts = (_vectors(path, start, header[name]) for name in ("image", "text"))
        captions = _texts(path, start, header["captions"], header["caption_ends"])
        keys = None
        if "keys" in header:
            keys = _texts(path, start, header["keys"], header["key_ends"], ESCAPED)
        if {len(images), len(texts), len(captions), len(captions if keys is None else keys)} != {len(images)}:
            raise ValueError("its embeddings and captions are not of one number")
        return _Part(images, texts, captions, keys, facts["space"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no shard of embeddings, or damaged: {error}") from error


_TYPES = {"F16": "<f2", "F32": "<f4"}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is cut short")
        return json.loads(file.read(size)), 8 + size


def _vectors(path: Path, start: int, entry: dict[str, Any]) -> Vectors:
    rows, dim = entry["shape"]
    offset = start + entry["data_offsets"][0]
    return Vectors(path, _TYPES[entry["dtype"]], offset, (rows, dim), "C", path.stat().st_mtime_ns)


def _texts(
    path: Path, start: int, texts: dict[str, Any], ends: dict[str, Any], errors: str = "strict"
) -> _Texts:
    with path.open("rb") as file:
        contents = []
        for first, end in (texts["data_offsets"], ends["data_offsets"]):
            file.seek(start + first)
            contents.append(file.read(end - first))
    return _Texts(*contents, errors)


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
        images = _of_npy(path)
        table = parquet.read_table(metadata)
    except (ValueError, OSError, EOFError, ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, which names the file
            raise
        raise ValueError(f"{path} or {metadata.name} cannot be read: {error}") from error
    names = ("caption", "text") if field is None else (field,)
    column = next((name for name in names if name in table.column_names), None)
    if column is None:
        raise ValueError(
            f"{metadata}: no column {' or '.join(names)} among {', '.join(table.column_names)}; name that of "
            f"the captions in data.caption_field"
        )
    captions = [(value or "").strip() for value in table.column(column).to_pylist()]
    dtype = np.dtype(images.dtype)
    if len(images.shape) != 2 or dtype.kind != "f" or len(images) != len(captions):
        raise ValueError(
            f"{path}: embeddings {dtype} {list(images.shape)} for {len(captions)} captions, expected "
            f"numbers [{len(captions)}, D]"
        )
    texts = folder / "text_emb" / f"text_emb{suffix}.npy"
    return _Part(images, _of_npy(texts) if texts.is_file() else None, captions)


def _of_npy(path: Path) -> Vectors:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    order: Literal["C", "F"] = "C" if found.flags.c_contiguous else "F"
    return Vectors(path, found.dtype.str, found.offset, found.shape, order, path.stat().st_mtime_ns)
