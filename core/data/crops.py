"""Training pairs of an upsampler: crops of large pictures, with a margin for what filters reach."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .batches import Batch, EpochSampler, Skipped
from .captions import WHITE_BACKGROUND, Background, random_background
from .pictograms import Pictogram
from .process import Process
from .rendering import composite, render_svg


class Canvas(Protocol):
    """Large square pictures by number, [size, size, 4] uint8 with straight alpha.

    ``opaque`` where nothing of them is transparent; ``groups`` as in :class:`EpochSampler`.
    """

    opaque: bool
    groups: tuple[int, ...]

    def __len__(self) -> int: ...

    def __call__(self, index: int, place: int, skipped: list[Skipped]) -> np.ndarray:
        """The picture ``index``, or what stands for it at a place in the run; adds what could not be used."""


class PictogramCanvas:
    """Pictograms, rendered when needed."""

    opaque = False
    groups: tuple[int, ...] = ()

    def __init__(self, pictograms: Sequence[Pictogram], size: int) -> None:
        self._pictograms, self._size = pictograms, size

    def __len__(self) -> int:
        return len(self._pictograms)

    def __call__(self, index: int, place: int, skipped: list[Skipped]) -> np.ndarray:
        return render_svg(self._pictograms[index].svg, self._size)


class CropBatches:
    """Random crops of pictures, those with transparency over random backgrounds.

    Rendering or decoding a picture costs more than training on a crop of it, so several crops share one.
    Crops of pictograms favour places where an outline runs: an empty background teaches nothing.
    """

    def __init__(
        self,
        canvas: Canvas,
        size: int,
        crop: int,
        margin: int,
        align: int,
        batch_size: int,
        seed: int,
        process: Process,
        crops_per_picture: int = 4,
        white: float = 0.45,
    ) -> None:
        """Args:
        canvas: the pictures, of side ``size``.
        crop, margin: a batch holds crops of ``crop + 2·margin``; beyond the picture its edge is repeated.
        align: crops start at multiples of this.
        batch_size: crops of all processes together.
        crops_per_picture: must divide ``batch_size``; the pictures are shared out to the processes.
        white: share of white backgrounds.
        """
        if batch_size % crops_per_picture:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of {crops_per_picture} crops per picture"
            )
        pictures = batch_size // crops_per_picture
        if pictures % process.world:
            raise ValueError(
                f"loop.batch_size is {batch_size}, which {process.world} processes cannot share out evenly, "
                f"{crops_per_picture} crops of each picture together: take a multiple of "
                f"{process.world * crops_per_picture}, or another number of processes"
            )
        self.canvas = canvas
        self.size, self.crop, self.margin, self.align = size, crop, margin, align
        self.sampler = EpochSampler(len(canvas), pictures, seed, canvas.groups)
        self.rows = process.rows(pictures)
        self.crops_per_picture, self.seed = crops_per_picture, seed
        self.white = white

    def __call__(self, step: int) -> Batch:
        """[B, 3, crop + 2·margin, crop + 2·margin] float32 0..1, no captions: the rows of this process."""
        indices = self.sampler(step)[self.rows]
        first = step * self.sampler.batch_size + self.rows.start
        skipped: list[Skipped] = []
        with ThreadPoolExecutor(2) as pool:  # resvg and picture decoding release the interpreter lock
            numbered = enumerate(map(int, indices), first)
            pictures = list(pool.map(lambda each: self.canvas(each[1], each[0], skipped), numbered))
        crops = []
        for place, picture in enumerate(pictures, self.rows.start):
            rng = random.Random(f"{self.seed}/{step}/{place}")
            for _ in range(self.crops_per_picture):
                background = WHITE_BACKGROUND if self.canvas.opaque else random_background(rng, self.white)
                crops.append(self._crop(picture, background, rng))
        return Batch(torch.cat(crops), [], [], torch.from_numpy(indices), skipped=tuple(skipped))

    def _crop(self, picture: np.ndarray, background: Background, rng: random.Random) -> Tensor:
        rows, columns = (self._window(start) for start in self._position(picture, rng))
        rgba = torch.from_numpy(picture[np.ix_(rows, columns)]).permute(2, 0, 1)[None]  # [1, 4, C, C]
        top, bottom = torch.tensor([background.top, background.bottom])[:, None]  # [1, 3] each
        return composite(rgba, top, bottom, torch.from_numpy(rows / (self.size - 1)).float())

    def _position(self, picture: np.ndarray, rng: random.Random) -> tuple[int, int]:
        places = (self.size - self.crop) // self.align + 1
        top = left = 0
        for _ in range(3):
            top, left = (rng.randrange(places) * self.align for _ in range(2))
            alpha = picture[top : top + self.crop, left : left + self.crop, 3]
            if self.canvas.opaque or alpha.min() < alpha.max():  # an outline runs through it
                break
        return top, left

    def _window(self, start: int) -> np.ndarray:
        return np.arange(start - self.margin, start + self.crop + self.margin).clip(0, self.size - 1)
