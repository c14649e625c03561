"""Several results of each row of a batch, one after the other."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor

from ..embeddings.batches import common_batch
from ..embeddings.space import Embedding, TextFeatures
from .conditions import Conditions
from .noise import StartingNoise
from .regions import Region

Rows = TypeVar("Rows", Tensor, Embedding, TextFeatures, StartingNoise, None)


def results_to_make(repeat: int, batch_size: int, noise: StartingNoise | None = None, **sizes: int) -> int:
    """How many rows come of a batch whose every row is used ``repeat`` times: row r, copy k is r·repeat + k.

    Args:
        batch_size: rows to make of inputs that have one.
        noise: has a row for each row of the batch, or for each result.
        sizes: numbers of rows by input.

    Raises:
        ValueError: numbers that do not go together; names the inputs, and ``repeat`` where that may be meant.
    """
    common_batch(repeat=repeat)
    try:
        rows = common_batch(**sizes, batch_size=batch_size)
    except ValueError as error:
        if batch_size == 1 or min(sizes.values()) < 1:
            raise
        raise ValueError(
            f"{error}. To get {batch_size} results of each of several rows, leave batch_size at 1 and set "
            f"repeat to {batch_size}"
        ) from None
    if noise is not None and len(noise) != rows * repeat:
        rows = common_batch(**sizes, batch_size=batch_size, noise=len(noise))
    return rows * repeat


def repeat_each(rows: Rows, results: int) -> Rows:
    """[1 or B, …] → as it is, or [results, …] with each row as often as the others, one after the other."""
    if rows is None or len(rows) in (1, results):
        return rows
    if isinstance(rows, Tensor):
        return rows.repeat_interleave(results // len(rows), dim=0)
    names = {
        Embedding: ("vectors",),
        StartingNoise: ("values",),
        TextFeatures: ("tokens", "mask", "pooled", "control"),
    }
    changed: dict[str, Any] = {name: repeat_each(getattr(rows, name), results) for name in names[type(rows)]}
    return replace(rows, **changed)


def repeat_conditions(conditions: Conditions, results: int) -> Conditions:
    """:func:`repeat_each` of all that there is."""
    return Conditions(
        **{each.name: repeat_each(getattr(conditions, each.name), results) for each in fields(conditions)}
    )


def repeat_regions(regions: tuple[Region, ...], results: int) -> tuple[Region, ...]:
    """:func:`repeat_each` of the masks, embeddings and captions of all of them."""
    names = ("mask", "embedding", "text")
    return tuple(
        replace(each, **{name: repeat_each(getattr(each, name), results) for name in names})
        for each in regions
    )
