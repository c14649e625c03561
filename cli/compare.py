"""``unclip compare``: a page on which people judge two sets of pictures blind, and what they answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ..core.data.batches import Skipped
    from ..core.evaluation.judging.answers import Answers
    from ..core.evaluation.judging.questions import Kind

_ALL = "realism,caption,diversity"
_NAMED = 5


def compare(
    paths: Annotated[
        list[str], typer.Argument(metavar="A B", help="Two folders or shards of unclip batch, or answers.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder of the page; with --answers a JSON file."),
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="The paths are saved answers: print how often A won.")
    ] = False,
    questions: Annotated[str, typer.Option(help="What is asked, with commas between.")] = _ALL,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Ask so many of each question; by default all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order and the sides.")] = 0,
) -> None:
    """Make a page (index.html and its pictures) on which people judge pictures of A and B blind.

    They are asked which of two pictures looks more realistic, which matches the caption better, and which of
    two grids of 4 × 4 is more diverse; grids need 16 pictures of a caption. The page keeps their answers in
    the browser and saves them as a file: unclip compare --answers FILE… prints win rates with 95% intervals.
    """
    if answers:
        _print_rates([Path(path) for path in paths], output)
        return
    if len(paths) != 2:
        raise ValueError(f"found {len(paths)} sets of pictures, expected two: unclip compare A B -o PAGE")
    if output is None:
        raise ValueError("where does the page go? Name a new folder: -o PAGE")
    from .extras import needs_train_extra

    with needs_train_extra():
        _write_page(paths, output, questions, pairs, seed)


def _write_page(paths: list[str], output: Path, questions: str, pairs: int | None, seed: int) -> None:
    from ..core.data.opening import open_source, source_of
    from ..core.data.settings import DataConfig
    from ..core.evaluation.judging.page import write_page
    from ..core.evaluation.judging.questions import KINDS, make_questions
    from .console import named, print_path, stdout, warn
    from .progress import StageBars

    kinds = [word.strip() for word in questions.split(",") if word.strip()]
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(
            f"--questions: found {', '.join(unknown) or 'none'}; expected some of {', '.join(KINDS)}"
        )
    sources = []
    for name, path in zip("AB", paths, strict=True):
        with named("data.path", name):
            sources.append(open_source(DataConfig(source=source_of(path), path=path), "optional"))
    first, second = sources
    skipped: list[Skipped] = []
    asked = make_questions(first, second, cast("list[Kind]", kinds), pairs, seed, skipped)
    with StageBars() as bars:
        bar = bars.add("compare", len(asked))
        page = write_page(
            output,
            [(_name(paths[0]), first), (_name(paths[1]), second)],
            asked,
            seed,
            lambda done: bar(done, len(asked)),
        )
    for name, reason in skipped[:_NAMED]:
        warn(f"left out: {name}: {reason}")
    if skipped:
        warn(f"{len(skipped)} pairs of pictures that could not be used were left out")
    counts = {kind: sum(each.kind == kind for each in asked) for kind in KINDS}
    stdout().print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    print_path(page)


def _name(path: str) -> str:
    """How the answers call a set: its path as it was given."""
    return path.rstrip("/\\") or path


def _print_rates(paths: list[Path], output: Path | None) -> None:
    import json

    from ..core.evaluation.judging.answers import read_answers
    from ..core.formats.files.safetensors_io import write_text
    from .console import print_path, stdout

    found = read_answers(paths)
    stdout().print(_table(found))
    if output is not None:
        rates = {rate.kind: rate.to_json() for rate in found.rates}
        record = {"a": found.first, "b": found.second, "people": found.people, "win_rates_of_a": rates}
        write_text(output, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print_path(output)


def _table(found: Answers) -> Table:
    from rich.table import Table

    people = f"{found.people} {'person' if found.people == 1 else 'people'}"
    table = Table(
        "question", "A wins", "B wins", "not sure", "items", "win rate of A, %",
        caption=f"A: {found.first}, B: {found.second}; {people}",
    )  # fmt: skip
    for rate in found.rates:
        low, high = (100 * bound for bound in rate.interval)
        counts = (rate.wins, rate.losses, rate.unsure, rate.items)
        table.add_row(rate.kind, *map(str, counts), f"{100 * rate.value:.1f} ({low:.1f}–{high:.1f})")
    return table
