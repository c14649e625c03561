"""``unclip train``: one stage from a config file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..core.training.loop import LoopReport


def train(
    stage: Annotated[str, typer.Argument(help="clip, prior, ar-prior, decoder, upsampler or classifier.")],
    config: Annotated[Path, typer.Argument(help="TOML file, such as models/mini/configs/clip.toml.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; runs/CONFIG by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU even where there is a GPU.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on with a run though its config has changed.")
    ] = False,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Run the commands of data.path (pipe:…) that print shards.")
    ] = False,
) -> None:
    """Train a stage; a run that was stopped goes on at its last checkpoint.

    On several GPUs: torchrun --nproc_per_node N -m unclip.cli.app train STAGE CONFIG, or accelerate launch.
    """
    from ..core.data.opening import ALLOW_PIPE
    from ..core.training.stages import train_stage
    from .console import TERMINATED, print_path
    from .extras import needs_train_extra

    first = speak_of_runs()
    if allow_pipe:
        os.environ[ALLOW_PIPE] = "1"
    folder = output or Path("runs") / config.stem
    with needs_train_extra(), Progress() as bars:
        ended = train_stage(
            stage,
            config,
            folder,
            steps=steps,
            cpu=cpu,
            on_step=lambda report: bars.show(stage, report),
            accept_changes=accept_changes,
        )
    if ended is False:
        raise typer.Exit(TERMINATED)
    if first:
        print_path(folder)


def speak_of_runs() -> bool:
    """Let the first of a run's processes tell how it goes; returns whether this is the first."""
    from ..core.data.process import current_process

    first = current_process().rank == 0
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    return first


class Progress:
    """A bar for each stage in training, from its first report on: settings that do not fit need no bar."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self._bars.stop()

    def show(self, name: str, report: LoopReport) -> None:
        """Move the bar of the stage ``name``."""
        if name not in self._tasks:
            self._bars.start()
            self._tasks[name] = self._bars.add_task(f"train {name}", loss=report.loss, speed=0)
        self._bars.update(
            self._tasks[name],
            completed=report.step,
            total=report.steps,
            loss=report.loss,
            speed=report.images_per_second,
        )
