"""``unclip eval``: measure a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from ..core.evaluation.config import EvaluationConfig
    from ..core.evaluation.evaluate import Samples

_SHARES = {
    "r_precision_clip": "R-precision CLIP, %",
    "r_precision_pixels": "R-precision pixels, %",
    "background": "background mean, %",
    "background_median": "background median, %",
}
_NUMBERS = {"clip_score": "CLIP score", "cmmd": "CMMD", "precision": "precision", "recall": "recall"}


def evaluate(
    config: Annotated[Path, typer.Argument(help="TOML file, such as models/mini/configs/eval.toml.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the results; runs/CONFIG by default.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Evaluate the bundle in this folder instead of the config's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Take the pictograms from this folder of shards instead.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device to run on: cpu, cuda, cuda:1, mps. Default: the best.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure a bundle: R-precision, background binding, CMMD, precision and recall, and sheets of samples.

    Writes result.json, sheet-SPLIT-PRIOR.png and, for a config with guidance scales, guidance-STAGE.png with
    curves; prints a table of the measures and the files.
    """
    from dataclasses import replace

    from ..core.config import config_from_dict
    from .extras import needs_train_extra

    # Whatever may be missing is asked for first: a run takes minutes to hours.
    with needs_train_extra():
        from ..core.evaluation.config import EvaluationConfig
        from ..core.training.stages import read_toml

        settings = config_from_dict(EvaluationConfig, read_toml(config), str(config))
        if bundle is not None:
            settings = replace(settings, bundle=str(bundle))
        if data is not None:
            settings = replace(settings, data=replace(settings.data, shards=str(data)))
        folder = output or Path("runs") / config.stem
        _require_folder(folder)
        _run(settings, folder, device, quiet)


def _run(settings: EvaluationConfig, folder: Path, device: str | None, quiet: bool) -> None:
    import json
    import time

    from ..core.config import config_to_dict
    from ..core.evaluation.evaluate import ClipJudge
    from ..core.evaluation.evaluate import evaluate as run
    from ..core.formats.native import load_bundle
    from ..core.formats.safetensors_io import write_text
    from ..nodes import host
    from .console import print_path, stdout

    plot = None
    if settings.guidance_scales:
        from ..core.evaluation.plot import plot_guidance as plot
    host.set_device(device)
    where, dtype = host.compute_device(), host.choose_dtype(settings.precision)
    loaded = load_bundle(settings.bundle, device=where, dtype=dtype)
    judge = ClipJudge(_load_judge(settings.judge, settings.bundle, where))

    started = time.perf_counter()
    with _Bars(quiet) as bars:
        found = run(settings, loaded, judge, bars.show)
    record = {
        "settings": config_to_dict(settings),
        "bundle": loaded.name,
        "versions": _versions(),
        "device": str(where),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - started, 1),
        "results": found.results,
    }
    files = [folder / "result.json"]
    write_text(files[0], json.dumps(record, indent=2) + "\n")
    about = {key: record[key] for key in ("settings", "versions")}
    for samples in found.samples:
        path = folder / f"sheet-{samples.split.replace('_', '-')}-{samples.prior}.png"
        files.append(_write_picture(path, _sheet(samples), about))
    for varied in ("decoder", "prior"):
        curves = plot(found.results, varied) if plot else None
        if curves is not None:
            files.append(_write_picture(folder / f"guidance-{varied}.png", curves, about))
    stdout().print(_table(found.results))
    for path in files:
        print_path(path)


def _require_folder(folder: Path) -> None:
    """Raise a ValueError unless results can be written into this folder, which need not be there yet."""
    import os

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--output {folder}: cannot write into {there}; choose another folder")


def _sheet(samples: Samples) -> Image:
    from ..core.pictures.sheet import SheetStyle, contact_sheet, to_pil

    # Small pictures are shown larger, large ones as they are.
    style = SheetStyle(cell=max(128, samples.pictures.shape[-1]))
    return contact_sheet(to_pil(samples.pictures), samples.captions, style=style)


def _write_picture(path: Path, picture: Image, about: dict[str, Any]) -> Path:
    import json

    from PIL.PngImagePlugin import PngInfo

    from .builtin_nodes import write_png

    text = PngInfo()
    text.add_text("unclip", json.dumps(about))
    write_png(path, picture, text, 9)
    return path


def _load_judge(judge: str | None, bundle: str, device: Any) -> Any:
    import torch

    from ..core.formats.native import load_stage, read_bundle

    if judge is None:
        _, stages = read_bundle(bundle)
        if "clip" not in stages:
            raise ValueError(f"{bundle}: this bundle has no CLIP model; set judge to the file of one")
        judge = str(stages["clip"][0])
    # Always float32: two runs of different precision are judged alike.
    return load_stage(judge, expect="clip", device=device, dtype=torch.float32)


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("unclip", "open_clip_torch", "resvg_py"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # loaded without being installed
            versions[package] = "unknown"
    return versions


class _Bars:
    """One bar on stderr for each split and prior."""

    def __init__(self, quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        from .console import stderr

        self._tasks: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=stderr(),
            disable=quiet,
        )

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, title: str, done: float, total: int) -> None:
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total)
        self._progress.update(self._tasks[title], completed=done)


def _table(results: dict[str, Any]) -> Table:
    """One section for each split, one column for the real pictures and for each prior."""
    from rich.table import Column, Table

    priors = list(next(iter(results.values()))["priors"])
    table = Table(Column(no_wrap=True), "real pictures", *(f"prior {prior}" for prior in priors))
    for split, measured in results.items():
        columns = [measured["real"], *(measured["priors"][prior] for prior in priors)]
        table.add_row(f"[bold]{split.replace('_', '-')}[/bold]", f"{measured['prompts']} prompts")
        for key, label in _SHARES.items():
            table.add_row(label, *(_share(column[key]) for column in columns))
        for key, label in _NUMBERS.items():
            table.add_row(label, *(f"{column[key]:.3f}" for column in columns))
        table.add_section()
    return table


def _share(share: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in share["interval95"])
    return f"{100 * share['value']:.1f} ({low:.1f}–{high:.1f})"
