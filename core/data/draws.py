"""Random numbers of a batch that are the same whatever number of processes shares it.

Every process draws the numbers of all rows and keeps those of its own. A generator on a GPU fills a batch in
less time than it takes to launch a network, so this costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepGenerator(torch.Generator):
    """A generator that knows which rows of the whole batch its process works on.

    ``total`` rows in all, of which ``rows`` are its own. A plain ``torch.Generator`` has all of them.
    """

    def __new__(cls, device: torch.device | str = "cpu", *_: Any) -> StepGenerator:
        return super().__new__(cls, device)

    def __init__(self, device: torch.device | str, total: int, rows: slice) -> None:
        self.total, self.rows = total, rows

    def start(self, seed: int, rows: slice) -> StepGenerator:
        """Begin again with ``seed``, for other rows."""
        self.rows = rows
        self.manual_seed(seed)
        return self


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers in 0..1 of ``shape``, whose first axis are the rows of ``generator``."""
    whole = torch.rand(_whole(shape, generator), generator=generator, device=generator.device)
    return _own(whole, generator)


def draw_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers of ``shape``, whose first axis are the rows of ``generator``."""
    whole = torch.randn(_whole(shape, generator), generator=generator, device=generator.device)
    return _own(whole, generator)


def draw_integers(high: int, rows: int, generator: torch.Generator) -> Tensor:
    """[rows] int64 in 0..high−1."""
    whole = torch.randint(high, _whole((rows,), generator), generator=generator, device=generator.device)
    return _own(whole, generator)


def _whole(shape: tuple[int, ...], generator: torch.Generator) -> tuple[int, ...]:
    if not isinstance(generator, StepGenerator):
        return tuple(shape)
    own = generator.rows.stop - generator.rows.start
    if shape[0] != own:
        raise ValueError(f"numbers for {shape[0]} rows were asked of a generator for {own}")
    return (generator.total, *shape[1:])


def _own(whole: Tensor, generator: torch.Generator) -> Tensor:
    return whole[generator.rows] if isinstance(generator, StepGenerator) else whole
