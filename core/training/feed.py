"""Batches ahead of the network that needs them, and what of the data could not be used."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..data.batches import PictogramBatches
from .recipe import Recipe

logger = logging.getLogger(__name__)
NAMED = 5


@dataclass(frozen=True)
class _Failed:
    """Why a batch could not be made: torch itself would raise a page with the worker's traceback."""

    error: ValueError | OSError


class _Steps(Dataset):
    """The batches of a recipe by step, as worker processes make them, or what is wrong with the data."""

    def __init__(self, batches: Callable[[int], Any]) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Any:
        try:
            return self.batches(step)
        except OSError as error:
            return _Failed(OSError(str(error)))
        except ValueError as error:
            return _Failed(ValueError(str(error)))


class Unusable:
    """Counts the pictures that could not be used, and names the first of them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, batch: Any) -> None:
        """Take what ``Recipe.batches`` gave."""
        for name, reason in getattr(batch, "skipped", ()):
            if name not in self.names and len(self.names) < NAMED:
                logger.warning("left out: %s: %s", name, reason)
            self.names.add(name)


def feed(
    recipe: Recipe, first: int, last: int, workers: int = 0, seen: Callable[[Any], None] | None = None
) -> Iterator[Any]:
    """The batches of the steps ``first``…``last − 1``, each made while the network works on the one before.

    Args:
        workers: processes that make batches, each a whole step's; 0 for a thread of this process. Pictograms
            are drawn by them and painted by the thread, on the device of the network.
        seen: is given what ``recipe.batches`` returned, before it is prepared.
    """
    if first >= last:
        return
    batches = recipe.batches
    paint: Callable[[Any], Any] = _as_it_is
    if isinstance(batches, PictogramBatches):
        batches, paint = batches.draw, batches.paint
    steps = range(first, last)
    made = _from_workers(batches, steps, workers) if workers else (batches(step) for step in steps)

    def upcoming() -> Any:
        drawn = next(made)
        if isinstance(drawn, _Failed):
            raise drawn.error
        batch = paint(drawn)
        if seen is not None:
            seen(batch)
        return recipe.prepare(batch)

    # Closed once the thread has ended, so that workers end here: they do not heed the signal by which Python
    # ends those that an error's traceback still holds when the program is over, and it would wait for them.
    with closing(made), ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(upcoming)
        for step in range(first, last):
            batch = ahead.result()
            if step + 1 < last:
                ahead = thread.submit(upcoming)
            yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _from_workers(batches: Callable[[int], Any], steps: range, workers: int) -> Generator[Any, None, None]:
    loader = DataLoader(
        _Steps(batches),
        batch_size=None,
        sampler=steps,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_run,
    )
    # Its workers are forked here and now. Forked by the pool's thread, at the first batch, they would be that
    # thread, which Python has each of them join at its end: they would all fail after their work was done.
    return (batch for batch in loader)


def _leave_signals_to_the_run(_worker: int) -> None:
    """A run that is told to end ends its workers itself, once its checkpoint is written."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
