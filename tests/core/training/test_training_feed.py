"""Batches made ahead, and the processes that make them."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any

import pytest
from unclip.core.training.feed import feed

STEPS = range(3, 9)


def fed(workers: int, batches: int | None = None) -> tuple[list[Any], set[BaseProcess]]:
    """The first ``batches`` of them, and the processes that were there to make them."""
    recipe = SimpleNamespace(batches=lambda step: step, prepare=lambda batch: 10 * batch)
    others = set(multiprocessing.active_children())
    found: list[Any] = []
    processes: set[BaseProcess] = set()
    upcoming = feed(recipe, STEPS.start, STEPS.stop, workers)  # type: ignore[arg-type]
    for batch in islice(upcoming, batches):
        found.append(batch)
        processes |= set(multiprocessing.active_children()) - others
    upcoming.close()  # type: ignore[attr-defined]
    return found, processes


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batches", [1, None])
def test_batches_come_in_order_and_their_makers_end_well(workers: int, batches: int | None) -> None:
    found, processes = fed(workers, batches)
    assert found == [10 * step for step in STEPS][:batches]
    assert [process.exitcode for process in processes] == workers * [0]


def test_steps_that_are_done_need_nobody() -> None:
    assert list(feed(SimpleNamespace(), 5, 5, workers=2)) == []  # type: ignore[arg-type]
