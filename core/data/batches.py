"""Training batches: pure functions of seed and step, so that any step can be resumed exactly.

``batch_size`` is that of the whole batch, which all processes share; a process makes its own rows of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .augment import OVERSAMPLING, Augment, Augmentation, Variant
from .captions import Background, caption, random_background
from .pictograms import GROUPS, ICON_PACKAGES, Pictogram, read_shards, require_known
from .process import Process
from .rendering import composite, composite_premultiplied, render_all
from .settings import DataConfig

FILES_AT_ONCE = 16

# The name of a picture that cannot be used, and why.
Skipped = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of a batch.

    Attributes:
        images: [B, 3, S, S], float32 0..1 or uint8; where the data are embeddings, those [B, D].
        captions: one a row; none for crops.
        backgrounds: of pictograms, one a row.
        indices: which of the data the rows are, [B] int64.
        skipped: names of what could not be used, and why.
        twins: where they are asked for, the same pictures over other backgrounds, as ``images``.
        tokens: [B, N] ids of the captions, where the batches have a tokeniser.
    """

    images: Tensor
    captions: list[str]
    backgrounds: list[Background]
    indices: Tensor
    skipped: tuple[Skipped, ...] = ()
    twins: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn for the rows of a batch of pictograms, before they are painted.

    Attributes:
        layers: the backgrounds of the pictures, and those of their twins where they are asked for.
        tokens: [B, N] ids of the captions, where the batches have a tokeniser.
    """

    captions: list[str]
    indices: Tensor
    variants: list[Variant | None]
    layers: list[list[Background]]
    tokens: Tensor | None = None


def in_unit_range(pictures: Tensor) -> Tensor:
    """The pictures of a batch in float32, 0..1, on the device where they are.

    As bytes they go to a device in a quarter of the time, so move them first.
    """
    return pictures.float().div_(255) if pictures.dtype == torch.uint8 else pictures


def load_pictograms(config: DataConfig, held_out: bool | None = False) -> list[Pictogram]:
    """The pictograms of ``config`` that are (not) held out; None for all of them.

    Raises:
        ValueError: a style or a group that there is not, or none are left.
    """
    require_known("style", config.styles, ICON_PACKAGES)
    require_known("group", config.groups, GROUPS)
    chosen = [
        pictogram
        for pictogram in read_shards(Path(config.pictograms))
        if (not config.styles or pictogram.style in config.styles)
        and (not config.groups or pictogram.group in config.groups)
        and held_out in (None, pictogram.held_out)
    ]
    if not chosen:
        raise ValueError(
            f"{config.pictograms}: no {'held-out ' if held_out else ''}pictograms of the styles "
            f"{', '.join(config.styles) or '(all)'} and the groups {', '.join(config.groups) or '(all)'}; "
            f"build them with `unclip data pictograms`, or change data.styles and data.groups"
        )
    return chosen


class EpochSampler:
    """Indices of the items of each step: each item once an epoch, in an order of seed and epoch.

    Where the items lie in many files, an epoch goes through the files in a random order, and through the
    items of ``FILES_AT_ONCE`` of them in a random order: a disk is read file by file.
    """

    def __init__(self, items: int, batch_size: int, seed: int, groups: tuple[int, ...] = ()) -> None:
        """``groups``: how many items each file holds, in order; nothing for one file."""
        self.items, self.batch_size, self.seed, self.groups = items, batch_size, seed, groups
        self._last: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int) -> np.ndarray:
        """int64 indices of the whole batch at ``step``, [batch_size]."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.items
        return np.concatenate(
            [self._order(int(epoch))[positions[epochs == epoch] % self.items] for epoch in np.unique(epochs)]
        )

    def _order(self, epoch: int) -> np.ndarray:
        if self._last is None or self._last[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._last = epoch, self._shuffled(rng)
        return self._last[1]

    def _shuffled(self, rng: np.random.Generator) -> np.ndarray:
        if len(self.groups) <= FILES_AT_ONCE:
            return rng.permutation(self.items)
        files = np.split(np.arange(self.items), np.cumsum(self.groups)[:-1])
        order = rng.permutation(len(files))
        windows = np.split(order, range(FILES_AT_ONCE, len(order), FILES_AT_ONCE))
        return np.concatenate(
            [rng.permutation(np.concatenate([files[file] for file in window])) for window in windows]
        )


class PictogramBatches:
    """Pictograms over random named backgrounds, with random captions.

    All pictures are rendered once and kept in memory: [N, 4, size, size] bytes, 50 MB for 3000 at 64 px; four
    times that where they are augmented. A batch is drawn, which takes the processor alone and may be done by
    other processes, and then painted, on whatever device the pictures were moved to.

    Attributes:
        tokenise: captions → [B, N] ids, which takes several times as long as drawing them; None leaves it to
            whoever needs them.
    """

    tokenise: Callable[[list[str]], Tensor] | None = None

    def __init__(
        self,
        pictograms: Sequence[Pictogram],
        size: int,
        batch_size: int,
        seed: int,
        process: Process,
        style_named: float = 0.75,
        white: float = 0.45,
        augment: Augment | None = None,
        twin_block: int | None = None,
    ) -> None:
        """Args:
        style_named: share of captions that name the style.
        white: share of pictures on white.
        twin_block: so many rows in a row, a divisor of ``batch_size``, lie over one background, and their
            ``twins`` over another one; None for a background a row and no twins.
        """
        self.pictograms, self.size = pictograms, size
        rendered = size if augment is None else OVERSAMPLING * size
        self.pixels = render_all((pictogram.svg for pictogram in pictograms), rendered)
        self.augmentation = None if augment is None else Augmentation(augment, pictograms, self.pixels)
        self.sampler = EpochSampler(len(pictograms), batch_size, seed)
        self.rows = process.rows(batch_size)
        self.seed = seed
        self.style_named, self.white, self.twin_block = style_named, white, twin_block

    def __call__(self, step: int) -> Batch:
        """The rows of this process."""
        return self.paint(self.draw(step))

    def whole(self, step: int) -> Batch:
        """The rows of all processes."""
        return self.paint(self._draw(step, slice(None)))

    def to(self, device: torch.device) -> None:
        """Paint there from now on."""
        self.pixels = self.pixels.to(device)

    def draw(self, step: int) -> Drawn:
        """What the rows of this process will be painted from."""
        return self._draw(step, self.rows)

    def paint(self, drawn: Drawn) -> Batch:
        """The pictures of what was drawn, with all that is known of them."""
        images, *twins = self._images(drawn)
        return Batch(
            images,
            drawn.captions,
            drawn.layers[0],
            drawn.indices,
            twins=twins[0] if twins else None,
            tokens=drawn.tokens,
        )

    def _draw(self, step: int, rows: slice) -> Drawn:
        # Words and backgrounds are drawn for all rows: what one of them is must not depend on who makes it.
        rng = random.Random(f"{self.seed}/0/{step}")
        whole = self.sampler(step)
        variants = self._variants(whole.tolist(), step)
        backgrounds, others = self._backgrounds(len(whole), step, rng)
        captions = [
            self._caption(self.pictograms[index], background, variant, rng)
            for index, background, variant in zip(whole, backgrounds, variants, strict=True)
        ][rows]
        layers = [backgrounds[rows]] if others is None else [backgrounds[rows], others[rows]]
        tokens = None if self.tokenise is None else self.tokenise(captions)
        return Drawn(captions, torch.from_numpy(whole[rows]), variants[rows], layers, tokens)

    def _backgrounds(
        self, rows: int, step: int, rng: random.Random
    ) -> tuple[list[Background], list[Background] | None]:
        """The background of each row, and of its twin."""
        if self.twin_block is None:
            return [random_background(rng, self.white) for _ in range(rows)], None
        blocks = [random_background(rng, self.white) for _ in range(rows // self.twin_block)]
        twins = random.Random(f"{self.seed}/2/{step}")
        others = [self._other_background(background, twins) for background in blocks]
        first, second = (
            [background for background in each for _ in range(self.twin_block)] for each in (blocks, others)
        )
        return first, second

    def _other_background(self, background: Background, rng: random.Random) -> Background:
        while True:
            other = random_background(rng, self.white)
            if (other.top, other.bottom) != (background.top, background.bottom):
                return other

    def _variants(self, indices: list[int], step: int) -> list[Variant | None]:
        if self.augmentation is None:
            return [None] * len(indices)
        rng = random.Random(f"{self.seed}/1/{step}")
        return [self.augmentation.draw(index, rng) for index in indices]

    def _caption(
        self, pictogram: Pictogram, background: Background, variant: Variant | None, rng: random.Random
    ) -> str:
        concept, keywords, colour = pictogram.concept, pictogram.keywords, ""
        if variant is not None:
            colour = variant.colour
            if variant.synonym:
                concept, keywords = variant.synonym, ()
            if variant.surplus:
                concept, keywords = variant.surplus.format(concept), ()
        style = pictogram.style if rng.random() < self.style_named else None
        return caption(concept, keywords, style, background, rng, colour)

    def _images(self, drawn: Drawn) -> list[Tensor]:
        """The pictures over the backgrounds of each of the layers."""
        rgba, lay = self.pixels[drawn.indices.to(self.pixels.device)], composite
        if self.augmentation is not None:
            variants = [variant for variant in drawn.variants if variant is not None]
            rgba = self.augmentation.paint(rgba, drawn.indices.tolist(), variants, self.size)
            lay = composite_premultiplied
        ends = (
            [
                torch.tensor([getattr(each, end) for each in layer]).to(rgba.device)
                for end in ("top", "bottom")
            ]
            for layer in drawn.layers
        )
        return [lay(rgba, top, bottom) for top, bottom in ends]
