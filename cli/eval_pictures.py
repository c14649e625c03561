"""``unclip eval --pictures``: measure pictures that are there, whoever made them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..core.data.batches import Skipped
    from ..core.data.sources import Captions
    from ..core.evaluation.quality.pictures import Judges

_NAMED = 5
_FEW = 2048  # fewer pictures than Inception has features: their covariance is not of full rank
_ROWS = {
    "pictures": "pictures",
    "captions": "with captions",
    "clip_score": "CLIP score",
    "cmmd": "CMMD",
    "fid": "FID",
}


def measure_pictures(
    pictures: str,
    reference: str | None,
    clip: Path | None,
    inception: Path | None,
    folder: Path,
    device: str | None,
    batch_size: int,
    quiet: bool,
) -> None:
    """Look at the pictures on this process and those beside it, and let the first one say what was found.

    Args:
        pictures, reference: folders or shards.
        clip, inception: files of the judges.
        folder: of result.json.
        device: None for the best.
    """
    from ..core.data.opening import open_source, source_of, workers_of
    from ..core.data.process import current_process, device_of
    from ..core.data.settings import DataConfig
    from ..core.evaluation.quality.pictures import Looking, look, measure
    from .console import named
    from .measuring import Bars, chosen_device

    process = current_process()
    where = device_of(process, device == "cpu") if device in (None, "cpu") else chosen_device(device)
    judges = _judges(clip, inception, where)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    given: dict[str, tuple[str, Captions]] = {"--pictures": (pictures, "optional")}
    if reference is not None:
        given["--reference"] = (reference, "unread")
    opened = []  # all of them before the first one is looked at, which may take hours
    for option, (place, captions) in given.items():
        data = DataConfig(source=source_of(place), path=place)
        with named("data.path", option):
            opened.append((open_source(data, captions), data))
    with Bars(quiet or process.rank > 0) as bars:
        made, *others = [
            look(
                source,
                data,
                judges,
                Looking(where, batch_size, workers_of(data, processes)),
                process,
                bars.show,
            )
            for source, data in opened
        ]
    real = others[0] if others else None
    if made is None:  # the first process has all
        return
    results = measure(made, real, judges)
    settings = {
        "pictures": pictures,
        "reference": reference,
        "clip": None if clip is None else str(clip),
        "inception": None if inception is None else str(inception),
        "batch_size": batch_size,
    }
    _say(folder, settings, where, results, [*made.skipped, *(() if real is None else real.skipped)])


def _judges(clip: Path | None, inception: Path | None, device: torch.device) -> Judges:
    from ..core.evaluation.quality.inception import load_inception
    from ..core.evaluation.quality.pictures import Judges
    from .measuring import load_judge

    stage = None if clip is None else load_judge(clip, device)
    return Judges(stage, None if inception is None else load_inception(inception).to(device))


def _say(
    folder: Path,
    settings: dict[str, Any],
    device: torch.device,
    results: dict[str, Any],
    skipped: list[Skipped],
) -> None:
    import json

    from rich.table import Table

    from ..core.formats.files.safetensors_io import write_text
    from .console import print_path, stdout, warn
    from .measuring import versions

    record = {
        "settings": settings,
        "versions": versions(),
        "device": str(device),
        "results": results,
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
    }
    path = folder / "result.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    table = Table("measure", "found")
    for key, label in _ROWS.items():
        if key in results:
            value = results[key]
            table.add_row(label, f"{value:.4f}" if isinstance(value, float) else str(value))
    for name, reason in skipped[:_NAMED]:
        warn(f"left out: {name}: {reason}")
    if skipped:
        warn(f"{len(skipped)} pictures that could not be used were left out")
    if "fid" in results:
        if min(results["pictures"], results["reference"]["pictures"]) < _FEW:
            warn(f"FID of fewer than {_FEW} pictures says little: it falls as their number grows")
        if results["inception"] == "torchvision":
            warn(
                "by torchvision's weights FID is another number than papers report, which take pytorch-fid's"
            )
    stdout().print(table)
    print_path(path)
