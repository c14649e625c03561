"""``unclip inspect``: what a checkpoint or a bundle is, without loading its weights."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import stderr, stdout

if TYPE_CHECKING:
    import torch

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
            "bundle, of a model in diffusers' layout or of such files, or a bundle's name.",
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
    """A bundle and its stages, a network in diffusers' layout, or files of stages, as JSON values.

    Raises:
        ValueError: the folder is nothing of them, or what says what is in it, or a stage of it, cannot be
            read.
    """
    from ..core.config import config_to_dict
    from ..core.formats.defaults import read_defaults
    from ..core.formats.few_steps import decoder_folder, read_few_steps
    from ..core.formats.layouts.diffusers_files import is_component
    from ..core.formats.load import described_folders
    from ..core.pipelines.generate import default_settings

    if is_component(folder):
        return describe_file(folder)
    kind, name, paths, note = _contents(folder)
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
    described = [config_to_dict(each) for each in read_few_steps(decoder_folder(folder))]
    # What the folder says stands above what the decoder's own file says.
    if steps := described or _few_steps_of(stages):
        description["few_steps"] = steps
    if note:
        description["note"] = note
    return description


def _contents(folder: Path) -> tuple[str, str, list[Path], str]:
    """What a folder is, its name, its stages, and what else is to be told of it."""
    from ..core.formats.diffusers_bundle import encoder_folders, joined_folders, read_diffusers_folder
    from ..core.formats.load import is_bundle
    from ..core.formats.loose_stages import about_loose_stages, loose_stages
    from ..core.formats.native.checkpoints import BUNDLE_FILE, read_bundle

    if not is_bundle(folder) and (loose := loose_stages(folder)):
        paths = [each.path for each in loose]
        return "files of single stages", folder.resolve().name, paths, about_loose_stages(folder, loose) or ""
    if not is_bundle(folder) or (folder / BUNDLE_FILE).is_file():
        name, files = read_bundle(folder)
        return "unclip bundle", name, [file for group in files.values() for file in group], ""
    parts = joined_folders(folder)
    paths = []
    for part in parts or [folder]:
        _, found = read_diffusers_folder(part)
        encoders = encoder_folders(found.pop("clip")) if "clip" in found else []
        paths += [*encoders, *found.values()]
    return ("diffusers folders" if parts else "diffusers folder"), folder.resolve().name, paths, ""


def _few_steps_of(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    decoder = next((stage for stage in stages if stage.get("stage") == "decoder"), {})
    return (decoder.get("diffusion") or {}).get("few_steps", [])


def describe_file(path: Path) -> dict[str, Any]:
    """One checkpoint, as JSON values. One that is no stage of unCLIP has a ``note`` that says what it is.

    Raises:
        ValueError: no checkpoint, or a damaged one.
    """
    from ..core.formats.load import open_any
    from ..core.formats.native.header import is_native

    source = open_any(path)
    own = is_native(source)
    said, beside = (_native(source.path), []) if own else _foreign(source)
    counts: Counter[torch.dtype] = Counter()
    for part in (source, *beside):
        for name, dtype in part.dtypes.items():
            counts[dtype] += prod(part.shapes[name])
    description: dict[str, Any] = {
        "format": "safetensors" if source.path.name.endswith((".safetensors", ".json")) else "PyTorch",
        "path": str(source.path),
        "tensors": sum(len(part.shapes) for part in (source, *beside)),
        "parameters": counts.total(),
        "bytes": sum(dtype.itemsize * count for dtype, count in counts.items()),
        "dtypes": {_DTYPES.get(str(dtype), str(dtype)): count for dtype, count in counts.most_common()},
    }
    if beside:
        description["beside"] = [str(part.path) for part in beside]
    return description | said


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


def _foreign(source: WeightSource) -> tuple[dict[str, Any], list[WeightSource]]:
    """What the keys and shapes of a file in another layout say, and the weights that belong to its stage."""
    from ..core.config import config_to_dict
    from ..core.formats.detect import identify_all

    try:
        layout, *others = identify_all(source)
    except ValueError as error:
        return {"note": str(error)}, []
    description: dict[str, Any] = {"format": layout.name, "stage": layout.stage}
    if layout.space is not None:
        description["space"] = {"id": layout.space(source)}
    if layout.licence is not None:
        description["licence"] = layout.licence
    if layout.config is not None:
        description["config"] = config_to_dict(layout.config(source))
    if others:
        description["also"] = [other.stage for other in others]
    return description, layout.beside(source) if layout.beside is not None else []


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
    if "also" in stage:
        rows.append(("also holds", ", ".join(stage["also"])))
    if "beside" in stage:
        rows.append(("with", ", ".join(stage["beside"])))
    if "stages" in stage:
        held = ((each.get("stage", "unknown"), *each.get("also", ())) for each in stage["stages"])
        stages = (" and ".join(names) for names in held)
        rows.append(("stages", ", ".join(stages)))
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
