"""A run that is told to end (SIGTERM, as schedulers send it before they take a machine away)."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignal:
    """A context in which SIGTERM asks for an end instead of making one."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopSignal:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:  # only there Python lets handlers be set
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
