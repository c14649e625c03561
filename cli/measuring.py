"""What the commands that measure a bundle share: their options, settings, results and bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..core.stages import Bundle

Settings = TypeVar("Settings")

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the results; runs/CONFIG by default.")
]
BundleName = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        metavar="NAME|PATH",
        help="Measure this bundle instead of the config's.",
    ),
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Take the pictograms from this folder of shards instead.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device to run on: cpu, cuda, cuda:1, mps. Default: the best."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def read_settings(settings: type[Settings], config: Path, bundle: str | None, data: Path | None) -> Settings:
    """A config with ``bundle`` and ``data.shards`` from its file, unless the command line names others."""
    from dataclasses import replace

    from ..core.config import config_from_dict
    from ..core.training.stages import read_toml
    from .bundles import bundle_folder, path_or_bundle

    found: Any = config_from_dict(settings, read_toml(config), str(config))
    if bundle is not None:
        found = replace(found, bundle=str(bundle_folder(bundle)))
    else:
        found = replace(found, bundle=str(path_or_bundle(Path(found.bundle))))
    if data is not None:
        found = replace(found, data=replace(found.data, shards=str(data)))
    return found


def require_folder(folder: Path) -> Path:
    """The folder; a ValueError unless results can be written into it. It need not be there yet."""
    import os

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--output {folder}: cannot write into {there}; choose another folder")
    return folder


def chosen_device(device: str | None) -> torch.device:
    """The device of ``--device``; a ValueError where it is none, or not there."""
    from ..nodes import host

    host.set_device(device)
    return host.compute_device()


def load_measured(settings: Any, device: str | None) -> tuple[Bundle, torch.device, torch.dtype]:
    """The bundle of a config on the device and in the precision that it is to be measured in."""
    from ..core.formats.load import load_any_bundle
    from ..nodes import host

    where = chosen_device(device)
    dtype = host.choose_dtype(settings.precision)
    return load_any_bundle(settings.bundle, device=where, dtype=dtype), where, dtype


def load_judge(path: str | Path, device: torch.device) -> Any:
    """The CLIP model that judges, of a file or folder of any layout.

    Always in float32: two runs of different precision are judged alike.
    """
    import torch

    from ..core.formats.load import load_any_stage

    return load_any_stage(path, expect="clip", device=device, dtype=torch.float32)


def write_record(
    folder: Path,
    settings: Any,
    bundle: Bundle,
    where: torch.device,
    dtype: torch.dtype,
    seconds: float,
    results: dict[str, Any],
    tables: dict[str, Any] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write result.json, with further tables beside the results; returns its path, and what pictures say
    about how they were made."""
    import json

    from ..core.config import config_to_dict
    from ..core.formats.files.safetensors_io import write_text

    record = {
        "settings": config_to_dict(settings),
        "bundle": bundle.name,
        "versions": versions(),
        "device": str(where),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": round(seconds, 1),
        "results": results,
        **(tables or {}),
    }
    path = folder / "result.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    return path, {key: record[key] for key in ("settings", "versions")}


def write_picture(path: Path, picture: Image, about: dict[str, Any]) -> Path:
    """Write a PNG that says in its text ``unclip`` how it was made."""
    import json

    from PIL.PngImagePlugin import PngInfo

    from ..core.pictures.files import write_png

    text = PngInfo()
    text.add_text("unclip", json.dumps(about))
    write_png(path, picture, text, 9)
    return path


class Bars:
    """One bar on stderr for each title that progress is told of."""

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

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, title: str, done: float, total: int) -> None:
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total)
        self._progress.update(self._tasks[title], completed=done)


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers may depend on."""
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
