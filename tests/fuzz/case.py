"""A case: something damaged, one way to read it, and what counts as a good end."""

from __future__ import annotations

import contextlib
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30.0  # for one case, of the processor
LIBRARIES_OWN = (UnicodeError,)  # ValueErrors that nobody wrote for people


@dataclass(frozen=True)
class Case:
    """What is damaged, in words; the way in; and names of which one stands in the message of an error."""

    what: str
    run: Callable[[], object]
    names: tuple[str, ...]


Maker = Callable[[random.Random, Path, Path], Case]
"""Makes a case from a generator of its own, the folder of whole files, and an empty folder to work in."""


class Hang(BaseException):
    """Raised when a case takes too long; no ``except Exception`` swallows it."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise Hang in a block that computes longer, where the system can tell."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fault_of(case: Case, scratch: Path) -> str | None:
    """What is wrong with how a case ends, or None: it works, or an error for people names the place."""
    before = set(scratch.rglob("*"))
    began = time.process_time()
    try:
        with bounded(SECONDS):
            case.run()
        return None
    except Hang:
        return f"still computing after {time.process_time() - began:.0f} s"
    except Exception as error:
        left = [p.name for p in scratch.rglob("*.tmp") if p not in before]
        return _fault(error, case.names) or (f"left {left} behind" if left else None)


def _fault(error: BaseException, names: tuple[str, ...]) -> str | None:
    text = str(error)
    named = any(name and name in text for name in names)
    if isinstance(error, OSError):
        return None if named or error.filename is not None else _raw(error)
    if not isinstance(error, ValueError) or isinstance(error, LIBRARIES_OWN):
        return _raw(error)
    cause = error.__cause__
    if type(error).__name__ == "WorkflowError" and cause is not None:
        return _fault(cause, names)  # a node failed: its own error is what the person reads, under its name
    return None if named else f"names neither file nor field: {text[:200]!r}"


def _raw(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:200]!r}"
