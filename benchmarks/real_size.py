"""Every published layout at its real size, with random weights: loaded, run, timed, and its memory measured.

Files are written (see `published.py`), then loaded and run as the nodes do it (see `measuring.py`), each
layout in a process of its own. That the loaders take them proves names and shapes; the pictures are noise.

    python benchmarks/real_size.py [LAYOUT …] [--folder DIR] [--steps 3] [--help]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from measuring import GIB, TYPES, Plan, Report, Run
from published import LAYOUTS, Layout
from rich.console import Console
from rich.table import Table

TEMPORARY = Path(tempfile.gettempdir())
WHOLE = "written"  # marks a folder whose files are all there
TOLERANCE = 0.003  # of numbers of parameters, which are published in round numbers

console = Console(width=140)


def main(
    layouts: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(LAYOUTS)}; all by default.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the files go: up to 14 GB at a time.")] = TEMPORARY,
    dtype: Annotated[str, typer.Option(help="Type to load in: bf16, fp16 or fp32.")] = "bf16",
    steps: Annotated[int, typer.Option(help="Of each U-Net; 0 for those its authors take.")] = 0,
    side: Annotated[int, typer.Option(help="Pixels, for Kandinsky's decoders.")] = 512,
    keep: Annotated[bool, typer.Option(help="Leave the files, and use those that were left.")] = False,
    write_only: Annotated[bool, typer.Option(help="Only write the files, and leave them.")] = False,
    zeros: Annotated[
        bool, typer.Option(help="Leave the numbers out: quick to write, and as much work.")
    ] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
) -> None:
    """Write, load and run each layout."""
    if dtype not in TYPES:
        raise typer.BadParameter(f"found {dtype}, expected one of {', '.join(TYPES)}")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    console.print(
        f"torch {torch.__version__}, {threads or torch.get_num_threads()} threads, loaded as {dtype}"
    )
    table = Table("layout", "files", "stages", "weights", "load", "peak loading", "peak", "seconds")
    for name in layouts or LAYOUTS:
        at = folder / name
        write(LAYOUTS[name], at, zeros)
        if not write_only:
            layout = LAYOUTS[name]
            report = measure(replace(layout, size=side) if layout.size else layout, at, dtype, steps)
            require_published(name, LAYOUTS[name], report.parameters)
            table.add_row(name, f"{size(at):.1f}", *cells(report))
        if not (keep or write_only):
            shutil.rmtree(at)
    if not write_only:
        console.print(table)
        console.print(
            "Sizes in GiB. Peaks: memory that is the process's own + what is mapped from the files, with the "
            "libraries. Seconds on the clock / of the processor; of a stage (steps × of one); ~ where fewer "
            "steps were run."
        )


def write(layout: Layout, folder: Path, zeros: bool) -> None:
    """Write the files of a layout, unless they are there."""
    if not (folder / WHOLE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        layout.write(folder, zeros)
        (folder / WHOLE).touch()


def measure(layout: Layout, folder: Path, dtype: str, steps: int) -> Report:
    """Run a layout in a process of its own."""
    plan = {field.name: getattr(layout, field.name) for field in fields(Plan)}
    script = str(Path(__file__).with_name("measuring.py"))
    command = [sys.executable, script, str(folder), dtype, str(steps), json.dumps(plan)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    found["runs"] = {name: Run(**run) for name, run in found["runs"].items()}
    return Report(**found)


def require_published(name: str, layout: Layout, found: Mapping[str, int]) -> None:
    """Raise a ValueError where a loaded network has not as many parameters as the published one."""
    for stage, millions in layout.parameters.items():
        together = [other for other in found if layout.files and layout.files[other] == layout.files[stage]]
        count = sum(found[other] for other in together or [stage])
        if abs(count / 1e6 - millions) > max(1.0, TOLERANCE * millions):
            raise ValueError(f"{name}: {stage} has {count:,} parameters, expected {millions} millions")


def cells(report: Report) -> list[str]:
    runs = {stage: run for stage, run in report.runs.items() if stage in ("prior", "decoder", "upsampler")}
    return [
        ", ".join(f"{stage} {count / 1e6:.0f}M" for stage, count in report.parameters.items()),
        f"{report.weights:.1f}",
        f"{report.load:.1f} / {report.load_cpu:.1f}",
        f"{report.load_own:.1f} + {report.load_peak - report.load_own:.1f}",
        f"{report.own:.1f} + {report.peak - report.own:.1f}",
        ", ".join(f"{stage} {seconds(run)}" for stage, run in runs.items()),
    ]


def seconds(run: Run) -> str:
    """On the clock / of the processor."""
    if not run.steps:
        return f"{run.seconds:.2f} / {run.cpu:.2f}"
    known = "" if run.of == len(run.steps) else "~"
    after = f", {run.after:.1f} after the last" if run.after > 0.1 else ""
    return f"{known}{run.whole:.1f} ({run.of} × {run.step:.2f} / {run.cpu_step:.2f}{after})"


def size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / GIB


if __name__ == "__main__":
    typer.run(main)
