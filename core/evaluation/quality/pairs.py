"""Two pictograms in one picture: beside each other in two colours, or one above the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.augment import Colour, colour_of, recoloured
from ...data.captions import COLOURS, with_article
from ...data.pictograms import Pictogram
from ...data.rendering import composite, render_svg

HUES = ("red", "yellow", "green", "blue", "purple")
"""Colours that differ by their hue."""
_RENDERED = 64


@dataclass(frozen=True)
class Thing:
    """A pictogram, and the colour that its caption names; its own, unnamed colours where that is empty."""

    pictogram: Pictogram
    colour: str = ""

    @property
    def words(self) -> str:
        concept = self.pictogram.concept
        return with_article(f"{self.colour} {concept}" if self.colour else concept)


@dataclass(frozen=True)
class Pair:
    """What is left and right, or above and below; with colours they are beside each other."""

    first: Thing
    second: Thing

    @property
    def things(self) -> tuple[Thing, Thing]:
        return self.first, self.second

    @property
    def coloured(self) -> bool:
        return bool(self.first.colour)

    @property
    def caption(self) -> str:
        return f"{self.first.words} {'and' if self.coloured else 'above'} {self.second.words}"


def draw_coloured_pairs(pictograms: Sequence[Pictogram], count: int, seed: int) -> list[Pair]:
    """``count`` pairs such as "a red apple and a yellow banana", of two concepts of one style.

    Both are pictograms of one colour, of whose concepts no word is a colour.

    Raises:
        ValueError: no style has two of them.
    """
    own = [each for each in pictograms if _can_be_painted(each)]
    return _drawn(own, count, seed, lambda rng: rng.sample(HUES, 2), "of one colour")


def draw_placed_pairs(pictograms: Sequence[Pictogram], count: int, seed: int) -> list[Pair]:
    """``count`` pairs such as "a cat above a box", of two concepts of one style, in their own colours.

    Raises:
        ValueError: no style has two concepts.
    """
    return _drawn(list(pictograms), count, seed, lambda _: ["", ""], "")


def render_pairs(pairs: Sequence[Pair], size: int) -> Tensor:
    """[N, 3, size, size] float32 0..1: each thing half as large as the picture, in the middle of its half."""
    half = size // 2
    pictures = torch.ones(len(pairs), 3, size, size)
    for picture, pair in zip(pictures, pairs, strict=True):
        for thing, (top, left) in zip(pair.things, _corners(size, pair.coloured), strict=True):
            picture[:, top : top + half, left : left + half] = _painted(thing, half)
    return pictures


def squares_of(pictures: Tensor, beside: bool) -> tuple[Tensor, Tensor]:
    """[N, 3, S, S] → the square in the middle of each half, both [N, 3, S/2, S/2]."""
    size = pictures.shape[-1]
    half = size // 2
    first, second = (
        pictures[..., top : top + half, left : left + half] for top, left in _corners(size, beside)
    )
    return first, second


def _corners(size: int, beside: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Upper edge and left edge of the square of both halves."""
    half, quarter = size // 2, size // 4
    return ((quarter, 0), (quarter, half)) if beside else ((0, quarter), (half, quarter))


def _drawn(pictograms: list[Pictogram], count: int, seed: int, colours, what: str) -> list[Pair]:
    styles: dict[str, list[Pictogram]] = {}
    for pictogram in pictograms:
        styles.setdefault(pictogram.style, []).append(pictogram)
    styles = {name: found for name, found in styles.items() if len({each.concept for each in found}) > 1}
    if not styles:
        raise ValueError(
            f"found no style with two concepts {what or 'at all'} in {len(pictograms)} pictograms; give "
            f"more, or leave the table [binding] out"
        )
    pairs = []
    for index in range(count):
        rng = random.Random(f"{seed}/{index}/{what}")
        found = styles[rng.choice(sorted(styles))]
        first = rng.choice(found)
        second = rng.choice([each for each in found if each.concept != first.concept])
        one, other = colours(rng)
        pairs.append(Pair(Thing(first, one), Thing(second, other)))
    return pairs


def _can_be_painted(pictogram: Pictogram) -> bool:
    named = {*COLOURS, "white", "gold", "silver", "grey"}
    if not set(pictogram.concept.replace("-", " ").split()).isdisjoint(named):
        return False
    own = _colour_of(pictogram)
    return own is not None and own.saturation > 0


def _colour_of(pictogram: Pictogram) -> Colour | None:
    return colour_of(_pixels(pictogram, _RENDERED))


def _pixels(pictogram: Pictogram, size: int) -> Tensor:
    """[4, size, size] uint8."""
    return torch.from_numpy(render_svg(pictogram.svg, size).copy()).permute(2, 0, 1)


def _painted(thing: Thing, size: int) -> Tensor:
    """[3, size, size] in 0..1, over white."""
    rgba = _pixels(thing.pictogram, size)
    own = _colour_of(thing.pictogram) if thing.colour else None
    if own is not None:
        (painted,) = recoloured(rgba[None, :3].float() / 255, [own], [thing.colour])
        rgba = torch.cat([(255 * painted).round().to(torch.uint8), rgba[3:]])
    white = torch.full((1, 3), 255)
    return composite(rgba[None], white, white)[0]
