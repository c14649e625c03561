"""Where the command line writes: results on stdout, the rest on stderr; and how errors end a command."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
TERMINATED = 143  # and for one that was told to end (SIGTERM)

_debug: ContextVar[bool] = ContextVar("debug", default=False)


def set_debug(on: bool) -> None:
    """Show tracebacks of errors."""
    _debug.set(on)


def stdout() -> Console:
    """The console for results. Made anew each time, so that it follows a redirected ``sys.stdout``."""
    return Console(highlight=False)


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def print_path(path: Path) -> None:
    """One path on a line of its own, never wrapped, for scripts to read."""
    stdout().print(Text(str(path)), soft_wrap=True)


def warn(message: str) -> None:
    stderr().print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)


def fail(message: str) -> None:
    stderr().print(Text(message, style="red"), soft_wrap=True)


@contextmanager
def named(setting: str, option: str) -> Iterator[None]:
    """Errors about a setting of configs are told by the option or argument that gave it here."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        if not message.startswith(f"{setting}: "):
            raise
        raise ValueError(option + message.removeprefix(setting)) from error


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command end in one red line and exit code 1 instead of a traceback; Ctrl-C ends it with 130.

    ValueError (a WorkflowError too) and OSError are written for users and shown as they are; anything else is
    a defect and says so. ``--debug`` shows the traceback of either.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if is_usage_error(error):
                raise
            if _debug.get():
                stderr().print_exception()
            fail(_line(error))
            raise typer.Exit(1) from None

    return run


def is_usage_error(error: Exception) -> bool:
    """True for what typer reports itself, with exit code 2: wrong options and arguments."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)) and str(error):
        return str(error)
    if (lack := _lack_of_memory(error)) is not None:
        return f"{lack}: take less at once (a smaller batch, size or model), or close other programs"
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _lack_of_memory(error: Exception) -> str | None:
    if "torch" not in sys.modules:  # whose errors these are, and which takes a second to import
        return None
    from ..core.memory import lack_of_memory

    return lack_of_memory(error)
