"""LoRA files of the command line, ``FILE[:STRENGTH]``, as the node's names and strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import typer


def chosen_loras(given: Sequence[str]) -> list[tuple[str, float]]:
    """Names by which Load unCLIP LoRA finds just these files in this process, and strengths."""
    from ..nodes import host, lora_files
    from ..nodes.lora import UnCLIPLoadLoRA

    listed, taken = lora_files.list_loras(), UnCLIPLoadLoRA.INPUT_TYPES()["required"]["strength"][1]
    by_path: dict[str, Path] = {}
    chosen = []
    for each in given:
        name, strength = _split(each, taken["min"], taken["max"])
        if name not in listed:
            path = _file(each, name, listed)
            name = path.name
            # As if its folder was the last of those with LoRAs: a name of the list keeps its meaning.
            found = lora_files.find_lora(name, [*host.lora_folders(), path.parent])
            if found != path or by_path.setdefault(name, path) != path:
                raise typer.BadParameter(f"--lora {each}: another LoRA has the name {name}; rename this one.")
        chosen.append((name, strength))
    host.named_loras.update(by_path)
    return chosen


def _file(given: str, file: str, listed: Sequence[str]) -> Path:
    from ..core.folders import at_home

    path = at_home(file).resolve()
    if not path.is_file():
        found = ", ".join(listed[1:]) or "none"
        raise typer.BadParameter(
            f"--lora {given}: there is no file {file}; the LoRAs in the folders of models are: {found}."
        )
    return path


def _split(given: str, low: float, high: float) -> tuple[str, float]:
    """``FILE:STRENGTH``, or a file alone; of ``C:\\…`` the first colon belongs to the file."""
    file, colon, strength = given.rpartition(":")
    if not colon or len(file) == 1:
        return given, 1.0
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise typer.BadParameter(
            f"--lora {given}: found {strength!r} behind the colon, expected a number from {low:g} to "
            f"{high:g}, such as 0.8."
        )
    return file, number
