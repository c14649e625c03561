"""``unclip eval``: measure a bundle, or pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .measuring import BundleName, DataFolder, Device, Output, Quiet

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from rich.table import Table

    from ..core.evaluation.quality.config import EvaluationConfig
    from ..core.evaluation.quality.report import Samples
    from ..core.evaluation.quality.tables import Table as Measures
    from ..core.stages import Bundle, ClipStage

ClassifierFile = Annotated[
    Path | None,
    typer.Option(
        "--classifier", help="Let the classifier in this file judge besides; instead of the config's."
    ),
]


def evaluate(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file, such as models/mini/configs/eval.toml.")
    ] = None,
    output: Output = None,
    bundle: BundleName = None,
    data: DataFolder = None,
    device: Device = None,
    quiet: Quiet = False,
    pictures: Annotated[
        str | None,
        typer.Option(help="Measure these instead of a bundle: a folder, or shards, such as of unclip batch."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Real pictures to compare --pictures with, for CMMD and FID.")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="File or folder of the CLIP model that judges --pictures.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="Inception's weights for FID: pytorch-fid's file, or torchvision's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="How many of --pictures are judged at once.")] = 32,
    classifier: ClassifierFile = None,
) -> None:
    """Measure a bundle: R-precision, background binding, CMMD, precision and recall, and sheets of samples.

    Writes result.json, its tables as result.md, sheet-SPLIT-PRIOR.png and, for a config with guidance scales,
    guidance-STAGE.png with curves; prints the tables and the files.

    With --pictures it measures those, without a config: CLIP score, CMMD and FID, in result.json. On several
    GPUs: torchrun --nproc_per_node N -m unclip.cli.app eval --pictures …, or accelerate launch; the numbers
    are the same.
    """
    from dataclasses import replace

    from .eval_pictures import measure_pictures
    from .extras import needs_train_extra
    from .measuring import read_settings, require_folder

    if pictures is not None:
        if any(given is not None for given in (config, bundle, data, classifier)):
            raise ValueError(
                "--pictures takes no config, --bundle, --data or --classifier: the pictures are there already"
            )
        folder = require_folder(output or Path("runs") / f"eval-{Path(pictures).name}")
        with needs_train_extra():
            measure_pictures(pictures, reference, clip, inception, folder, device, batch_size, quiet)
        return
    if config is None:
        raise ValueError(
            "what is measured? Name a config, such as models/mini/configs/eval.toml, or --pictures"
        )
    for name, value in (("--reference", reference), ("--clip", clip), ("--inception", inception)):
        if value is not None:
            raise ValueError(f"{name} belongs to --pictures; a bundle's judge stands in its config")
    # Whatever may be missing is asked for first: a run takes minutes to hours.
    with needs_train_extra():
        from ..core.evaluation.quality.config import EvaluationConfig

        settings = read_settings(EvaluationConfig, config, bundle, data)
        if classifier is not None:
            settings = replace(settings, classifier=str(classifier))
        _run(settings, require_folder(output or Path("runs") / config.stem), device, quiet)


def _run(settings: EvaluationConfig, folder: Path, device: str | None, quiet: bool) -> None:
    import time

    from ..core.evaluation.quality.evaluate import evaluate as run
    from ..core.evaluation.quality.judges import ClipJudge
    from ..core.evaluation.quality.tables import tables_of, to_markdown
    from ..core.formats.files.safetensors_io import write_text
    from .console import print_path, stdout
    from .measuring import Bars, chosen_device, load_judge, load_measured, write_picture, write_record

    plot = None
    if settings.guidance_scales:
        from ..core.evaluation.quality.plot import plot_guidance as plot
    # The judges first: they are small, and what does not fit is told before a large bundle is read.
    where = chosen_device(device)
    clip = None if settings.judge is None else load_judge(settings.judge, where)
    classifier = _load_classifier(settings.classifier, where)
    loaded, where, dtype = load_measured(settings, device)
    judge = ClipJudge(_own_judge(loaded, settings.bundle, where, dtype) if clip is None else clip)

    started = time.perf_counter()
    with Bars(quiet) as bars:
        found = run(settings, loaded, judge, bars.show, classifier)
    seconds = time.perf_counter() - started
    record, about = write_record(folder, settings, loaded, where, dtype, seconds, found.results, found.tables)
    tables = tables_of(found.results, found.tables)
    write_text(folder / "result.md", to_markdown(tables))
    files = [record, folder / "result.md"]
    for samples in found.samples:
        path = folder / f"sheet-{samples.split.replace('_', '-')}-{samples.prior}.png"
        files.append(write_picture(path, _sheet(samples), about))
    for varied in ("decoder", "prior"):
        curves = plot(found.results, varied) if plot else None
        if curves is not None:
            files.append(write_picture(folder / f"guidance-{varied}.png", curves, about))
    for table in tables:
        stdout().print(_shown(table))
    for path in files:
        print_path(path)


def _sheet(samples: Samples) -> Image:
    from ..core.pictures.sheet import SheetStyle, contact_sheet, to_pil

    # Small pictures are shown larger, large ones as they are.
    style = SheetStyle(cell_size=max(128, samples.pictures.shape[-1]))
    return contact_sheet(to_pil(samples.pictures), samples.captions, style=style)


def _own_judge(bundle: Bundle, folder: str, device: torch.device, dtype: torch.dtype) -> ClipStage:
    """The CLIP model of the bundle, in float32: of our own bundles as their file has it."""
    import copy
    from dataclasses import replace

    import torch

    from ..core.formats.native.checkpoints import BUNDLE_FILE, read_bundle
    from .measuring import load_judge

    if bundle.clip is None:
        raise ValueError(f"{folder}: this bundle has no CLIP model; set judge to the file or folder of one")
    if dtype == torch.float32:
        return bundle.clip
    if (Path(folder) / BUNDLE_FILE).is_file():
        return load_judge(read_bundle(folder)[1]["clip"][0], device)
    return replace(bundle.clip, network=copy.deepcopy(bundle.clip.network).float())


def _load_classifier(path: str | None, device: Any) -> Any:
    import torch

    from ..core.evaluation.quality.judges import ConceptJudge
    from ..core.formats.native.classifier import load_classifier

    return None if path is None else ConceptJudge(load_classifier(path, device=device, dtype=torch.float32))


def _shown(table: Measures) -> Table:
    from rich.table import Column, Table

    shown = Table(*(Column(name, no_wrap=not name) for name in table.columns), title=table.title)
    for row in table.rows:
        shown.add_row(*(f"[bold]{cell.strip('*')}[/bold]" if cell.startswith("**") else cell for cell in row))
    return shown
