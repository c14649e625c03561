"""How many rows a batch has."""

from __future__ import annotations


def common_batch(**sizes: int) -> int:
    """The batch size that all inputs, by name, agree on: each has it, or 1 row to repeat.

    Raises:
        ValueError: an empty input, or two different numbers of rows; names the inputs.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")
    batch = max(sizes.values())
    if any(size not in (1, batch) for size in sizes.values()):
        found = ", ".join(f"{name} {size}" for name, size in sizes.items() if size != 1)
        raise ValueError(f"batch sizes do not match: {found}. Each must be 1 or the same number")
    return batch
