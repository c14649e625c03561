"""Which pictures of two sets are shown beside each other, and on which side."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from ...data.batches import Skipped
from ...data.decoding import open_picture, upright
from ...data.sources import PictureSource

Kind = Literal["realism", "caption", "diversity"]
Side = Literal["left", "right"]

KINDS: tuple[Kind, ...] = ("realism", "caption", "diversity")
GRID = 16  # pictures of one caption, as 4 × 4
_Pair = tuple[int, int]  # a picture of either set
_SIZES: dict[Kind, int] = {"realism": 1, "caption": 1, "diversity": GRID}


@dataclass(frozen=True)
class Question:
    """One thing to be asked.

    Attributes:
        kind: realism and match of the caption are asked of a pair, diversity of two grids.
        item: what is asked about, the same in every page of the same pictures.
        caption: of all pictures; empty where they have none.
        first, second: which pictures of either set.
    """

    kind: Kind
    item: str
    caption: str
    first: tuple[int, ...]
    second: tuple[int, ...]


def make_questions(
    first: PictureSource,
    second: PictureSource,
    kinds: Sequence[Kind] = KINDS,
    most: int | None = None,
    seed: int = 0,
    skipped: list[Skipped] | None = None,
) -> list[Question]:
    """Questions of each kind, in an order that is shuffled within the kind (unCLIP, sections 5.1 and 5.2).

    Pictures belong together by their names. Of a caption that several have, the first one stands for it in
    pairs, and the first ``GRID`` make its grid; a caption with fewer has no grid.

    Args:
        most: of each kind, chosen by the seed; None for all.
        skipped: gets the names of pictures that cannot be used, and why. Of the same caption others stand in
            for them, where there are any.

    Raises:
        ValueError: the sets have no names in common, a name that they share has two captions, or there is
            nothing to ask.
    """
    skipped = [] if skipped is None else skipped
    others = {second.key(index): index for index in range(len(second))}
    pairs = [(index, others[first.key(index)]) for index in range(len(first)) if first.key(index) in others]
    if not pairs:
        raise ValueError(
            f"no picture of one set has the name of one in the other ({first.key(0)} …, {second.key(0)} …): "
            f"paint both with unclip batch from the same file of captions"
        )
    groups: dict[tuple[str, str], list[_Pair]] = {}
    for own, other in pairs:
        key = first.key(own)
        try:
            caption, their = first.read(own).caption, second.read(other).caption
        except (ValueError, OSError) as error:
            skipped.append((key, str(error)))
            continue
        if caption != their:
            raise ValueError(
                f"{key} is {caption!r} in one set and {their!r} in the other: paint both from the "
                f"same file of captions"
            )
        groups.setdefault((caption, "" if caption else key), []).append((own, other))
    shown = _Shown(first, second, skipped)
    questions: list[Question] = []
    for kind in KINDS:
        if kind in kinds:
            asked = [
                (caption, found)
                for (caption, _), found in groups.items()
                if len(found) >= _SIZES[kind] and (caption or kind == "realism")
            ]
            random.Random(f"{seed}/{kind}").shuffle(asked)
            # Pictures are looked at where they are asked about: a large set is not read twice.
            made = (_question(kind, first, caption, found, shown) for caption, found in asked)
            questions += islice((each for each in made if each is not None), most)
    if not questions:
        lost = f"; {skipped[0][0]} cannot be used: {skipped[0][1]}" if skipped else ""
        raise ValueError(
            f"nothing to ask: the match of captions needs captions, diversity {GRID} pictures of one caption"
            f"{lost}"
        )
    return questions


class _Shown:
    """Whether both pictures of a pair can be shown; those that cannot are noted once."""

    def __init__(self, first: PictureSource, second: PictureSource, skipped: list[Skipped]) -> None:
        self._sets, self._skipped = (("first", first), ("second", second)), skipped
        self._known: dict[_Pair, bool] = {}

    def __call__(self, pair: _Pair) -> bool:
        if pair not in self._known:
            self._known[pair] = self._opens(pair)
        return self._known[pair]

    def _opens(self, pair: _Pair) -> bool:
        for (which, source), index in zip(self._sets, pair, strict=True):
            try:
                upright(open_picture(source.read(index).picture))
            except (ValueError, OSError) as error:
                self._skipped.append((f"{source.key(index)} of the {which} set", str(error)))
                return False
        return True


def _question(
    kind: Kind, first: PictureSource, caption: str, found: Sequence[_Pair], shown: _Shown
) -> Question | None:
    """A question about the first pairs that can be shown; None where they are too few."""
    members = list(islice((pair for pair in found if shown(pair)), _SIZES[kind]))
    if len(members) < _SIZES[kind]:
        return None
    own, others = zip(*members, strict=True)
    return Question(kind, first.key(own[0]), caption, own, others)


def side_of_first(seed: int, kind: str, item: str) -> Side:
    """On which side the first set's pictures are: by a hash: nothing has to be kept beside the page."""
    digest = hashlib.sha256(f"{seed}/{kind}/{item}".encode("utf-8", "surrogateescape")).digest()
    return "left" if digest[0] % 2 else "right"
