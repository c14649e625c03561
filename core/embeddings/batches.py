"""How many rows a batch has, and several batches as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..config import require_at_least
from .space import Embedding, require_same_space


def common_batch(**sizes: int) -> int:
    """The batch size that all inputs, by name, agree on: each has it, or 1 row to repeat.

    Captions, the inputs with ``text`` in their names, may also be so many that the batch is a multiple: those
    of which a prior has made several embeddings each. ``TextFeatures.expand`` repeats them likewise. What
    ``batch_size`` alone asks for is no such batch.

    Raises:
        ValueError: an empty input, no whole number, or two different numbers of rows; names the inputs.
    """
    require_at_least(1, **sizes)
    batch = max(sizes.values())
    there = any(size == batch for name, size in sizes.items() if name != "batch_size")

    def fits(name: str, size: int) -> bool:
        return size in (1, batch) or (there and "text" in name and batch % size == 0)

    if not all(fits(*each) for each in sizes.items()):
        found = ", ".join(f"{name} {size}" for name, size in sizes.items() if size != 1)
        raise ValueError(f"batch sizes do not match: {found}. Each must be 1 or the same number")
    return batch


def join(embeddings: Sequence[Embedding | None]) -> Embedding:
    """Several batches of embeddings as one, in their order.

    Args:
        embeddings: each [B, D], of one space; None is left out. In messages they are ``embedding_1`` and on.

    Returns:
        [ΣB, D] on the device and in the norm convention of the first.

    Raises:
        ValueError: none at all, different spaces, or unit vectors where raw ones are expected, whose length
            no statistics tell.
    """
    given = {f"embedding_{number}": one for number, one in enumerate(embeddings, 1) if one is not None}
    if not given:
        raise ValueError("embeddings: found none, expected at least one")
    first = next(iter(given.values()))
    for name, embedding in given.items():
        require_same_space(name, embedding.space, first.space)
    rows = [embedding.in_norm_of(first.space, name) for name, embedding in given.items()]
    return Embedding(torch.cat([each.to(first.vectors) for each in rows]), first.space)
