"""``unclip inspect``: what a checkpoint or a bundle is, from its header alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import stderr, stdout


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="FILE_OR_FOLDER", help="A .safetensors file, an index, or a bundle.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what a checkpoint is: format, stage, size, CLIP space, config."""
    description = describe_folder(path) if path.is_dir() else describe_file(path)
    if as_json:
        stdout().print_json(json.dumps(description, ensure_ascii=False))
    else:
        _show(description)


def describe_folder(folder: Path) -> dict[str, Any]:
    """A bundle and its stages, as JSON values.

    Raises:
        ValueError: the folder is no bundle, or its bundle.json or a stage of it cannot be read.
    """
    from ..core.formats.native import read_bundle

    name, files = read_bundle(folder)
    stages = [describe_file(file) for group in files.values() for file in group]
    return {
        "format": "unclip bundle",
        "name": name,
        "path": str(folder),
        "parameters": sum(stage["parameters"] for stage in stages),
        "bytes": sum(stage["bytes"] for stage in stages),
        "stages": stages,
    }


def describe_file(path: Path) -> dict[str, Any]:
    """One checkpoint, as JSON values. A safetensors file of another layout is described by its tensors.

    Raises:
        ValueError: not a safetensors file, or a damaged one.
    """
    from ..core.config import config_to_dict
    from ..core.formats.native import read_header
    from ..core.formats.native_header import is_native
    from ..core.formats.safetensors_io import read_tensor_file

    file = read_tensor_file(path)
    counts = Counter()
    for tensor in file.tensors.values():
        counts[tensor.dtype] += _elements(tensor.shape)
    description: dict[str, Any] = {
        "format": "safetensors",
        "path": str(file.path),
        "files": len(file.files),
        "tensors": len(file.tensors),
        "parameters": sum(counts.values()),
        "bytes": file.nbytes,
        "dtypes": dict(counts.most_common()),
    }
    if not is_native(file):
        return description
    header = read_header(path)
    description.update(
        format="unclip",
        stage=header.stage,
        network=header.network,
        space=None if header.space is None else config_to_dict(header.space),
        diffusion=None if header.diffusion is None else config_to_dict(header.diffusion),
        config=config_to_dict(header.config),
    )
    if header.low_size is not None:
        description["low_size"] = header.low_size
    if header.timesteps is not None:
        description["timesteps"] = list(header.timesteps)
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
    if description["format"] == "safetensors":
        stderr().print("This file does not say what it is: it was not saved by unclip.", style="yellow")


def _rows(stage: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("format", stage["format"])]
    rows += [(key, str(stage[key])) for key in ("name", "stage", "network", "low_size") if stage.get(key)]
    if "stages" in stage:
        rows.append(("stages", ", ".join(entry.get("stage", "unknown") for entry in stage["stages"])))
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
