"""A ComfyUI server may be away for a moment: how long it is waited for once a run is on its way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .client import UnreachableError

PAUSE = 1.0  # seconds between questions to a server that does not answer
PATIENCE = 10.0  # seconds for which it may be away

Answer = TypeVar("Answer")


def pause() -> None:
    """The time between two questions."""
    time.sleep(PAUSE)


class Patience:
    """Counts from the first of several failures in a row, however long ago the server was asked before."""

    def __init__(self) -> None:
        self._first_failure: float | None = None

    def answered(self) -> None:
        self._first_failure = None

    def failed(self) -> bool:
        """Note a failure; True once they have gone on for too long."""
        now = time.monotonic()
        if self._first_failure is None:
            self._first_failure = now
        return now - self._first_failure > PATIENCE


def ask_patiently(question: Callable[[], Answer]) -> Answer:
    """Ask a server until it answers.

    Raises:
        UnreachableError: it is away for longer than `PATIENCE`.
    """
    patience = Patience()
    while True:
        try:
            return question()
        except UnreachableError:
            if patience.failed():
                raise
        pause()
