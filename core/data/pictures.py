"""Batches of pictures with captions, and of crops of them: each row a function of seed and place alone."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from .batches import Batch, EpochSampler, Skipped
from .decoding import open_picture, square
from .embeddings import EmbeddingSource
from .process import Process
from .settings import DataConfig
from .sources import PictureSource

ATTEMPTS = 100


class Rows(Protocol):
    """A source of which some rows cannot be used: pictures or embeddings."""

    groups: tuple[int, ...]

    def __len__(self) -> int: ...
    def key(self, index: int) -> str: ...
    def read(self, index: int) -> Any: ...


class Subset:
    """Some rows of a source."""

    def __init__(self, source: Rows, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        ends = np.cumsum(source.groups)
        counts = np.bincount(np.searchsorted(ends, indices, side="right"), minlength=len(ends))
        self.groups = tuple(int(count) for count in counts if count)

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(int(self._indices[index]))

    def read(self, index: int) -> Any:
        return self._source.read(int(self._indices[index]))


class Usable:
    """Rows of a source; for one that cannot be used another one, chosen by the seed and the place alone."""

    def __init__(self, source: Rows, read: Callable[[int, random.Random], Any], seed: int) -> None:
        self._source, self._read, self._seed = source, read, seed

    def __call__(self, index: int, place: int, skipped: list[Skipped]) -> Any:
        """The row ``index`` for a place in the run, or what stands for it.

        Raises:
            ValueError: of very many rows none can be used.
        """
        rng = random.Random(f"{self._seed}/{place}")
        for _ in range(ATTEMPTS):
            try:
                return self._read(index, rng)
            except (ValueError, OSError, RecursionError) as error:
                skipped.append((self._source.key(index), str(error)))
            index = rng.randrange(len(self._source))
        key, reason = skipped[-1]
        raise ValueError(f"of {ATTEMPTS} rows of the data none can be used; {key}: {reason}")


class _Batches(ABC):
    """Rows of a source with their captions, batch by batch."""

    def __init__(
        self, source: PictureSource | EmbeddingSource | Subset, batch_size: int, seed: int, process: Process
    ) -> None:
        """``batch_size``: of all processes together."""
        self.source = source
        self.sampler = EpochSampler(len(source), batch_size, seed, source.groups)
        self.rows = process.rows(batch_size)
        self._usable = Usable(source, self._read, seed)

    def __call__(self, step: int) -> Batch:
        """The rows of this process."""
        return self._batch(step, self.rows)

    def whole(self, step: int) -> Batch:
        """The rows of all processes."""
        return self._batch(step, slice(0, self.sampler.batch_size))

    def _batch(self, step: int, rows: slice) -> Batch:
        skipped: list[Skipped] = []
        indices = self.sampler(step)[rows]
        first = step * self.sampler.batch_size + rows.start
        pairs = [self._usable(int(index), first + row, skipped) for row, index in enumerate(indices)]
        # In a worker process this is written once, where the process that trains reads it.
        images = self._images(default_collate([image for image, _ in pairs]))
        captions = [caption for _, caption in pairs]
        return Batch(images, captions, [], torch.from_numpy(indices), skipped=tuple(skipped))

    @abstractmethod
    def _images(self, rows: Tensor) -> Tensor:
        """What ``_read`` has given, stacked, as a batch has it."""

    @abstractmethod
    def _read(self, index: int, rng: random.Random) -> tuple[np.ndarray, str]:
        """A picture or its embedding, and its caption."""


class PictureBatches(_Batches):
    """Squares of pictures in uint8 with their captions."""

    def __init__(
        self,
        source: PictureSource | Subset,
        config: DataConfig,
        size: int,
        batch_size: int,
        seed: int,
        process: Process,
    ) -> None:
        """Args:
        size: side of the squares.
        batch_size: of all processes together.
        """
        super().__init__(source, batch_size, seed, process)
        self.config, self.size = config, size

    def _images(self, rows: Tensor) -> Tensor:
        return rows.permute(0, 3, 1, 2)  # as it lies, channels last

    def _read(self, index: int, rng: random.Random) -> tuple[np.ndarray, str]:
        found = self.source.read(index)
        picture = open_picture(found.picture, self.config.min_side, self.config.max_aspect)
        return square(picture, self.size, self.config.crop, rng), found.caption


class PictureCanvas:
    """Pictures as :class:`CropBatches` takes them: large squares without transparency."""

    opaque = True

    def __init__(self, source: PictureSource | Subset, config: DataConfig, size: int, seed: int) -> None:
        """Args:
        size: side of the squares; smaller pictures are left out, they hold nothing to learn from.
        """
        self._source, self._config, self._size = source, config, size
        self._usable = Usable(source, self._read, seed)
        self.groups = source.groups

    def __len__(self) -> int:
        return len(self._source)

    def __call__(self, index: int, place: int, skipped: list[Skipped]) -> np.ndarray:
        """[size, size, 4] uint8."""
        return self._usable(index, place, skipped)

    def _read(self, index: int, rng: random.Random) -> np.ndarray:
        config = self._config
        picture = open_picture(
            self._source.read(index).picture, max(config.min_side, self._size), config.max_aspect
        )
        rgb = square(picture, self._size, config.crop, rng)
        return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], axis=2)


class EmbeddingBatches(_Batches):
    """Image embeddings with their captions, in the place of pictures."""

    def __init__(
        self,
        source: EmbeddingSource | Subset,
        batch_size: int,
        seed: int,
        process: Process,
        space_id: str = "",
    ) -> None:
        """``space_id``: of the CLIP space that they are of, where the files tell."""
        super().__init__(source, batch_size, seed, process)
        self.space_id = space_id
        self._texts_usable = Usable(source, self._read_text, seed)

    def texts(self, step: int) -> Tensor | None:
        """z_t [batch_size, D] of the captions of :meth:`whole`; None where the files do not hold them."""
        skipped: list[Skipped] = []
        first = step * self.sampler.batch_size
        rows = [
            self._texts_usable(int(index), first + row, skipped)
            for row, index in enumerate(self.sampler(step))
        ]
        return None if any(row is None for row in rows) else torch.from_numpy(np.stack(rows))

    def _images(self, rows: Tensor) -> Tensor:
        return rows

    def _read(self, index: int, _rng: random.Random) -> tuple[np.ndarray, str]:
        found = self.source.read(index)
        return found.image, found.caption

    def _read_text(self, index: int, _rng: random.Random) -> np.ndarray | None:
        return self.source.read(index).text
