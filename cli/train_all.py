"""``unclip train-all``: every stage of a system from nothing, and its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train_all(
    recipe: Annotated[Path, typer.Argument(help="TOML file, such as models/mini/recipe.toml.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of runs and bundle; runs/NAME by default."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of pictogram shards, instead of building them.")
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Train only this stage; may be given several times. The bundle follows the last one.",
        ),
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of the steps of every stage, above 0 to 1; less is a trial.")
    ] = 1.0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU even where there is a GPU.")] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Go on with stages though their settings have changed."),
    ] = False,
    evaluate: Annotated[bool, typer.Option(help="Measure the bundle, where the recipe says how.")] = True,
) -> None:
    """Train all stages of a recipe, one after the other, and put their bundle together.

    Goes on where it was stopped; finished stages are not trained again. Once CLIP is there, the others can
    be trained side by side: one command with --stage for each.
    """
    from ..core.data.process import current_process
    from ..core.training.all_stages import judge_of, read_recipe, train_system
    from ..core.training.loop import LoopReport
    from .console import TERMINATED, print_path
    from .extras import needs_train_extra
    from .train import Progress, speak_of_runs

    if not 0 < share <= 1:
        raise typer.BadParameter(f"--share: found {share}, expected a number above 0 and up to 1.")
    first = speak_of_runs()
    with needs_train_extra(), Progress() as bars:
        found = read_recipe(recipe)
        folder = output or Path("runs") / found.name

        def show(name: str, report: LoopReport) -> None:
            bars.show(name, report)

        trained = train_system(
            found,
            str(recipe),
            folder,
            pictograms=data,
            stages=stage or (),
            share=share,
            cpu=cpu,
            on_step=show,
            accept_changes=accept_changes,
        )
    if trained is None:
        raise typer.Exit(TERMINATED)
    if current_process().rank:
        return
    if evaluate and found.evaluation is not None and (trained / "bundle.json").exists():
        from .eval import evaluate as measure

        shards = data or folder / "data" / "pictograms"
        where = "cpu" if cpu else None
        config = recipe.parent / found.evaluation
        measure(config, folder / "eval", trained, shards, where, classifier=judge_of(folder))
    if first:
        print_path(trained)
