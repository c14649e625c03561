"""Training pairs of an upsampler: crops of large pictures, with a margin for what filters reach."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .batches import EpochSampler
from .captions import Background, random_background
from .pictograms import Pictogram
from .process import Process
from .rendering import composite, render_svg


class CropBatches:
    """Random crops of pictograms over random backgrounds, rendered when needed.

    Rendering a large picture costs more than training on a crop of it, so several crops share one.
    Crops favour places where an outline runs: there is nothing to learn from an empty background.
    """

    def __init__(
        self,
        pictograms: Sequence[Pictogram],
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
        size: of the rendered pictures.
        crop, margin: a batch holds crops of ``crop + 2·margin``; beyond the picture its edge is repeated.
        align: crops start at multiples of this.
        crops_per_picture: must divide ``batch_size``.
        white: share of white backgrounds.
        """
        if batch_size % crops_per_picture:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of {crops_per_picture} crops per picture"
            )
        self.pictograms = pictograms
        self.size, self.crop, self.margin, self.align = size, crop, margin, align
        self.sampler = EpochSampler(len(pictograms), batch_size // crops_per_picture, seed)
        self.rows = process.rows(batch_size // crops_per_picture)
        self.crops_per_picture, self.seed = crops_per_picture, seed
        self.white = white

    def __call__(self, step: int) -> Tensor:
        """[B, 3, crop + 2·margin, crop + 2·margin] float32 0..1: the rows of this process."""
        chosen = [self.pictograms[index] for index in self.sampler(step)[self.rows]]
        with ThreadPoolExecutor(2) as pool:  # resvg and PNG decoding release the interpreter lock
            pictures = list(pool.map(lambda pictogram: render_svg(pictogram.svg, self.size), chosen))
        crops = []
        for place, picture in enumerate(pictures, self.rows.start):
            rng = random.Random(f"{self.seed}/{step}/{place}")
            for _ in range(self.crops_per_picture):
                crops.append(self._crop(picture, random_background(rng, self.white), rng))
        return torch.cat(crops)

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
            if alpha.min() < alpha.max():  # an outline runs through it
                break
        return top, left

    def _window(self, start: int) -> np.ndarray:
        return np.arange(start - self.margin, start + self.crop + self.margin).clip(0, self.size - 1)
