"""Progress of a workflow on stderr: one bar for each node that samples, named by the node's title."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .console import stderr

if TYPE_CHECKING:
    from rich.console import Console


class StageBars:
    """A context in which bars can be opened, one below the other.

    Args:
        quiet: show nothing.
        console: where to; stderr if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.title = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console or stderr(),
            refresh_per_second=8,
            disable=quiet,
        )

    def __enter__(self) -> StageBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def on_node(self, node_id: str, title: str) -> None:
        """Name the bars that follow after the node that now runs."""
        self.title = title

    @contextmanager
    def open(self, title: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A bar as the nodes ask for it (``nodes.host.ProgressFactory``): yields ``update(done, total)``."""
        yield self.add(self.title or title, total)

    def add(self, title: str, total: int) -> Callable[[int, int], None]:
        """Add a bar, which stays to the end; returns ``update(done, total)``."""
        self._progress.start()  # only now, and stopped only then: without bars it leaves an empty line
        task = self._progress.add_task(title, total=total)

        def update(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)

        return update
