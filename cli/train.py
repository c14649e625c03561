"""``unclip train``: one stage from a config file."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Annotated

import typer


def train(
    stage: Annotated[str, typer.Argument(help="clip, prior, ar-prior, decoder or upsampler.")],
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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..core.data.opening import ALLOW_PIPE
    from ..core.data.process import current_process
    from ..core.training.loop import LoopReport
    from ..core.training.stages import train_stage
    from .console import TERMINATED, print_path
    from .extras import needs_train_extra

    first = current_process().rank == 0
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    if allow_pipe:
        os.environ[ALLOW_PIPE] = "1"
    folder = output or Path("runs") / config.stem
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(f"train {stage}", total=steps, loss=float("nan"), speed=0)
    with needs_train_extra(), contextlib.ExitStack() as display:

        def show(report: LoopReport) -> None:
            if not progress.live.is_started:  # only now: settings that do not fit need no bar
                display.enter_context(progress)
            progress.update(
                task,
                completed=report.step,
                total=report.steps,
                loss=report.loss,
                speed=report.images_per_second,
            )

        ended = train_stage(
            stage, config, folder, steps=steps, cpu=cpu, on_step=show, accept_changes=accept_changes
        )
    if not ended:
        raise typer.Exit(TERMINATED)
    if first:
        print_path(folder)
