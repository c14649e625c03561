"""LoRA files of the command line, ``FILE[:STRENGTH]``, as the node's names and strengths."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer


def chosen_loras(given: Sequence[str]) -> list[tuple[str, float]]:
    """Names for Load unCLIP LoRA, and strengths; folders of files become this process's folders of LoRAs."""
    return [_chosen(each) for each in given]


def _chosen(given: str) -> tuple[str, float]:
    from ..core.folders import at_home
    from ..nodes import host, lora_files

    file, strength = _split(given)
    if file in lora_files.list_loras():
        return file, strength
    path = at_home(file).resolve()
    if not path.is_file():
        found = ", ".join(lora_files.list_loras()[1:]) or "none"
        raise typer.BadParameter(
            f"--lora {given}: there is no file {file}; the LoRAs in the folders of models are: {found}."
        )
    before = os.environ.get(host.LORA_FOLDERS_VARIABLE)
    # The last of the named folders: what was chosen by its name keeps its meaning.
    folders = [*([before] if before else []), str(path.parent)]
    os.environ[host.LORA_FOLDERS_VARIABLE] = os.pathsep.join(folders)
    if lora_files.find_lora(path.name) != path:
        raise typer.BadParameter(f"--lora {given}: another LoRA has the name {path.name}; rename this one.")
    return path.name, strength


def _split(given: str) -> tuple[str, float]:
    """``FILE:STRENGTH``, or a file alone; of ``C:\\…`` the first colon belongs to the file."""
    file, colon, strength = given.rpartition(":")
    if not colon or len(file) == 1:
        return given, 1.0
    try:
        return file, float(strength)
    except ValueError:
        raise typer.BadParameter(
            f"--lora {given}: found {strength!r} behind the colon, expected a number such as 0.8."
        ) from None
