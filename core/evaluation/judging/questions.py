"""Which pictures of two sets are shown beside each other, and on which side."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...data.sources import PictureSource

Kind = Literal["realism", "caption", "diversity"]
Side = Literal["left", "right"]

KINDS: tuple[Kind, ...] = ("realism", "caption", "diversity")
GRID = 16  # pictures of one caption, as 4 × 4
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
) -> list[Question]:
    """Questions of each kind, in an order that is shuffled within the kind (unCLIP, sections 5.1 and 5.2).

    Pictures belong together by their names. Of a caption that several have, the first one stands for it in
    pairs, and the first ``GRID`` make its grid; a caption with fewer has no grid.

    Args:
        most: of each kind, chosen by the seed; None for all.

    Raises:
        ValueError: the sets have no names in common, a name that they share has two captions, or there is
            nothing to ask.
    """
    others = {second.key(index): index for index in range(len(second))}
    pairs = [(index, others[first.key(index)]) for index in range(len(first)) if first.key(index) in others]
    if not pairs:
        raise ValueError(
            f"no picture of one set has the name of one in the other ({first.key(0)} …, {second.key(0)} …): "
            f"paint both with unclip batch from the same file of captions"
        )
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for own, other in pairs:
        key, caption, their = first.key(own), first.read(own).caption, second.read(other).caption
        if caption != their:
            raise ValueError(
                f"{key} is {caption!r} in one set and {their!r} in the other: paint both from the "
                f"same file of captions"
            )
        groups.setdefault((caption, "" if caption else key), []).append((own, other))
    questions: list[Question] = []
    for kind in KINDS:
        if kind in kinds:
            made = [
                Question(kind, first.key(members[0][0]), caption, *zip(*members, strict=True))
                for (caption, _), found in groups.items()
                if len(members := found[: _SIZES[kind]]) == _SIZES[kind] and (caption or kind == "realism")
            ]
            random.Random(f"{seed}/{kind}").shuffle(made)
            questions += made[:most]
    if not questions:
        raise ValueError(
            f"nothing to ask: the match of captions needs captions, diversity {GRID} pictures of one caption"
        )
    return questions


def side_of_first(seed: int, kind: str, item: str) -> Side:
    """On which side the first set's pictures are: by a hash: nothing has to be kept beside the page."""
    digest = hashlib.sha256(f"{seed}/{kind}/{item}".encode("utf-8", "surrogateescape")).digest()
    return "left" if digest[0] % 2 else "right"
