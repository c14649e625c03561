"""``unclip probe``: measure the manipulations of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .measuring import BundleName, DataFolder, Device, Output, Quiet

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from ..core.evaluation.manipulations.config import ManipulationsConfig
    from ..core.evaluation.manipulations.measured_bundle import Example


def probe(
    config: Annotated[Path, typer.Argument(help="TOML file, such as models/mini/configs/probe.toml.")],
    output: Output = None,
    bundle: BundleName = None,
    data: DataFolder = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Measure manipulations: inversion, variations, interpolation, text diffs, PCA, inpainting.

    Writes result.json, curves (inversion-psnr.png, text-diff-curve.png, pca-error.png) and sheets of pictures
    (variations.png, text-diff.png); prints what each measure is to reach and whether it does, and the files.
    """
    from .extras import needs_train_extra
    from .measuring import read_settings, require_folder

    with needs_train_extra():
        from ..core.evaluation.manipulations.config import ManipulationsConfig

        settings = read_settings(ManipulationsConfig, config, bundle, data)
        _run(settings, require_folder(output or Path("runs") / config.stem), device, quiet)


def _run(settings: ManipulationsConfig, folder: Path, device: str | None, quiet: bool) -> None:
    import time

    from ..core.evaluation.manipulations.measures import measure_manipulations
    from ..core.evaluation.manipulations.plot import plot_inversion, plot_pca, plot_text_diff
    from .console import print_path, stdout
    from .measuring import Bars, load_measured, write_picture, write_record

    loaded, where, dtype = load_measured(settings, device)
    started = time.perf_counter()
    with Bars(quiet) as bars:
        found = measure_manipulations(settings, loaded, bars.show)
    seconds = time.perf_counter() - started
    record, about = write_record(folder, settings, loaded, where, dtype, seconds, found.results)
    pictures = {
        "inversion-psnr": plot_inversion(found.results["inversion"]),
        "text-diff-curve": plot_text_diff(found.results["text_diff"]),
        "pca-error": plot_pca(found.results["pca"]),
        **{example.name: _sheet(example) for example in found.examples},
    }
    files = [write_picture(folder / f"{name}.png", each, about) for name, each in pictures.items()]
    stdout().print(_table(found.results["checks"]))
    for path in (record, *files):
        print_path(path)


def _sheet(example: Example) -> Image:
    from ..core.pictures.sheet import SheetStyle, draw_sheet, tiles, to_pil

    style = SheetStyle(cell_size=max(128, example.pictures.shape[-1]))
    rows = [tiles(to_pil(row), labels) for row, labels in zip(example.pictures, example.labels, strict=True)]
    return draw_sheet(rows, row_labels=example.row_labels, column_labels=example.column_labels, style=style)


def _table(checks: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("measure", "found", "aim", "met")
    for check in checks:
        value = check["found"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(check["name"], shown, check["aim"], "yes" if check["met"] else "[red]no[/red]")
    return table
