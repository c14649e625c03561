"""``unclip inspect``: what a checkpoint or a bundle is, without loading its weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import stderr, stdout

if TYPE_CHECKING:
    from ..core.formats.files.weight_source import WeightSource

# safetensors' words for the types of tensors.
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="A checkpoint (.safetensors, .ckpt, .pt, .pth, .bin), an index of shards, the folder of a "
            "bundle or of a model in diffusers' layout, or a bundle's name.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what a checkpoint is: format, stage, size, CLIP space, config, licence."""
    from .bundles import path_or_bundle

    path = path_or_bundle(path)
    description = describe_folder(path) if path.is_dir() else describe_file(path)
    if as_json:
        stdout().print_json(json.dumps(description, ensure_ascii=False))
    else:
        _show(description)


def describe_folder(folder: Path) -> dict[str, Any]:
    """A bundle and its stages, or a network in diffusers' layout, as JSON values.

    Raises:
        ValueError: the folder is no bundle, or what says what is in it, or a stage of it, cannot be read.
    """
    from ..core.config import config_to_dict
    from ..core.formats.defaults import read_defaults
    from ..core.formats.diffusers_bundle import clip_folders, is_diffusers_folder, read_diffusers_folder
    from ..core.formats.few_steps import decoder_folder, read_few_steps
    from ..core.formats.layouts.diffusers_files import is_component
    from ..core.formats.load import described_folders
    from ..core.formats.native.checkpoints import read_bundle
    from ..core.pipelines.generate import default_settings

    if is_component(folder):
        return describe_file(folder)
    if is_diffusers_folder(folder):
        name, found = read_diffusers_folder(folder)
        found.pop("clip", None)
        towers = [tower for tower in clip_folders(folder) if tower is not None]
        kind, paths = "diffusers folder", [*towers, *found.values()]
    else:
        name, files = read_bundle(folder)
        kind, paths = "unclip bundle", [file for group in files.values() for file in group]
    stages = [describe_file(path) for path in paths]
    description: dict[str, Any] = {
        "format": kind,
        "name": name,
        "path": str(folder),
        "parameters": sum(stage["parameters"] for stage in stages),
        "bytes": sum(stage["bytes"] for stage in stages),
        "stages": stages,
    }
    defaults = read_defaults(described_folders(folder))
    if defaults.tables:
        description["defaults"] = {stage: default_settings(defaults, stage) for stage in defaults.tables}
    if steps := read_few_steps(decoder_folder(folder)):
        description["few_steps"] = [config_to_dict(each) for each in steps]
    return description


def describe_file(path: Path) -> dict[str, Any]:
    """One checkpoint, as JSON values. One that is no stage of unCLIP has a ``note`` that says what it is.

    Raises:
        ValueError: no checkpoint, or a damaged one.
    """
    from ..core.formats.load import is_native_source, open_any

    source = open_any(path)
    counts: Counter[str] = Counter()
    for name, dtype in source.dtypes.items():
        counts[_DTYPES.get(str(dtype), str(dtype))] += _elements(source.shapes[name])
    description: dict[str, Any] = {
        "format": "safetensors" if source.path.name.endswith((".safetensors", ".json")) else "PyTorch",
        "path": str(source.path),
        "tensors": len(source.shapes),
        "parameters": sum(counts.values()),
        "bytes": sum(
            dtype.itemsize * _elements(source.shapes[name]) for name, dtype in source.dtypes.items()
        ),
        "dtypes": dict(counts.most_common()),
    }
    return description | (_native(source.path) if is_native_source(source) else _foreign(source))


def _native(path: Path) -> dict[str, Any]:
    """What the header of a file in unclip's own format says."""
    from ..core.config import config_to_dict
    from ..core.formats.native.checkpoints import read_header

    header = read_header(path)
    description: dict[str, Any] = {
        "format": "unclip",
        "files": len(header.file.files),
        "stage": header.stage,
        "network": header.network,
        "space": None if header.space is None else config_to_dict(header.space),
        "diffusion": None if header.diffusion is None else config_to_dict(header.diffusion),
        "config": config_to_dict(header.config),
    }
    if header.low_size is not None:
        description["low_size"] = header.low_size
    if header.timesteps is not None:
        description["timesteps"] = list(header.timesteps)
    return description


def _foreign(source: WeightSource) -> dict[str, Any]:
    """What the keys and shapes of a file in another layout say."""
    from ..core.config import config_to_dict
    from ..core.formats.detect import identify

    try:
        layout = identify(source)
    except ValueError as error:
        return {"note": str(error)}
    description: dict[str, Any] = {"format": layout.name, "stage": layout.stage}
    if layout.space is not None:
        description["space"] = {"id": layout.space(source)}
    if layout.licence is not None:
        description["licence"] = layout.licence
    if layout.config is not None:
        description["config"] = config_to_dict(layout.config(source))
    return description


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _show(description: dict[str, Any]) -> None:
    """A table per checkpoint; a bundle's own first."""
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    for stage in [description, *description.get("stages", [])]:
        table = Table(show_header=False, box=None, title_justify="left", title_style="bold")
        table.title = Text(stage["path"])
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in _rows(stage):
            table.add_row(key, Text(value))
        console.print(table)
    if "note" in description:
        stderr().print(Text(description["note"], style="yellow"), soft_wrap=True)


def _rows(stage: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("format", stage["format"])]
    rows += [
        (key, str(stage[key]))
        for key in ("name", "stage", "network", "low_size", "licence")
        if stage.get(key)
    ]
    if "stages" in stage:
        rows.append(("stages", ", ".join(entry.get("stage", "unknown") for entry in stage["stages"])))
    if few_steps := stage.get("few_steps"):
        counts = (f"{each['sampler']} with {len(each['timesteps'])}" for each in few_steps)
        rows.append(("optimal steps", ", ".join(counts)))
    for name, settings in stage.get("defaults", {}).items():
        rows.append((f"{name} defaults", ", ".join(f"{key} {value}" for key, value in settings.items())))
    rows.append(("parameters", f"{stage['parameters']:,}"))
    files = f" in {stage['files']} files" if stage.get("files", 1) > 1 else ""
    rows.append(("size", f"{stage['bytes'] / 1e6:,.1f} MB{files}"))
    if "dtypes" in stage:
        total = max(1, stage["parameters"])
        shares = (f"{dtype} ({100 * count / total:.0f}%)" for dtype, count in stage["dtypes"].items())
        rows.append(("numbers", ", ".join(shares)))
    space = stage.get("space")
    if space:
        rows.append(("CLIP space", ", ".join(f"{key} {_short(value)}" for key, value in space.items())))
    for key in ("diffusion", "config"):
        for name, value in (stage.get(key) or {}).items():
            rows.append((f"{key}.{name}", _short(value)))
    return rows


def _short(value: Any, limit: int = 160) -> str:
    """A value on one line; long lists of numbers are told by their length."""
    if isinstance(value, list) and len(value) > 16:
        return f"[{len(value)} values]"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
