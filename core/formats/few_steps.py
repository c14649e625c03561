"""Where the timesteps stand that were found for a decoder: in the description of its folder.

A bundle has a ``bundle.json``; models in other layouts get an ``unclip.json`` of ours beside what is theirs.
Either holds ``"few_steps": {"decoder": [{"sampler": …, "timesteps": […]}, …]}``, see ``FoundSteps``. It
stands above what the decoder's own file says, which has them where unclip saved it with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import config_from_dict, config_to_dict
from ..diffusion.spec import FoundSteps
from ..stages import DecoderStage
from .diffusers_bundle import is_diffusers_folder, joined_folders, read_diffusers_folder
from .files.json_files import read_json_object
from .files.safetensors_io import write_text
from .layouts.diffusers_files import MODEL_INDEX, is_component
from .native.checkpoints import BUNDLE_FILE, read_bundle

OWN_FILE = "unclip.json"
"""Of ours, in the folder of a model in another layout."""

_KEY = "few_steps"
_ONE = re.compile(r'\{\s*"sampler": [^{}]*\}')


@dataclass(frozen=True)
class _Described:
    decoder: tuple[FoundSteps, ...]


def description_of(folder: str | Path) -> Path:
    """The file that describes a folder, be it there or not."""
    bundle = Path(folder) / BUNDLE_FILE
    return bundle if bundle.is_file() else Path(folder) / OWN_FILE


def read_few_steps(folder: str | Path) -> tuple[FoundSteps, ...]:
    """What a folder says; nothing where it says nothing.

    Raises:
        ValueError: a description that cannot be read, or that says something else there.
    """
    path = description_of(folder)
    if not path.is_file():
        return ()
    found = read_json_object(path).get(_KEY)
    try:
        return () if found is None else config_from_dict(_Described, found, _KEY).decoder
    except ValueError as error:
        raise ValueError(f"{path}: {error}; remove {_KEY}, or find it again by unclip steps") from error


def write_few_steps(folder: str | Path, steps: Sequence[FoundSteps]) -> Path:
    """Put timesteps into the description of a folder, written whole or not at all; returns its file."""
    path = description_of(folder)
    content = read_json_object(path) if path.is_file() else {}
    content[_KEY] = config_to_dict(_Described(tuple(steps)))
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # What was found for a number of steps on a line, for people.
    text = _ONE.sub(lambda one: " ".join(one[0].split()), text)
    write_text(path, text + "\n")
    return path


def described_steps(folders: Sequence[str | Path]) -> tuple[FoundSteps, ...]:
    """What the first of these folders says that says something."""
    return next((steps for folder in folders if (steps := read_few_steps(folder))), ())


def with_described_steps(decoder: DecoderStage, folders: Sequence[str | Path]) -> DecoderStage:
    """A decoder with what the first of these folders that says something knows of its steps.

    Raises:
        ValueError: what does not fit the decoder's timesteps; names the file.
    """
    for folder in folders:
        if steps := read_few_steps(folder):
            try:
                return replace(decoder, diffusion=replace(decoder.diffusion, few_steps=steps))
            except ValueError as error:
                raise ValueError(f"{description_of(folder)}: {error}") from error
    return decoder


def decoder_folder(folder: str | Path, *others: str | Path) -> Path:
    """The folder that describes the decoder of a model; of joined models it is that of one of them.

    Args:
        others: more models that belong to the first.
    """
    joined = [] if (Path(folder) / BUNDLE_FILE).is_file() else joined_folders(folder)
    parts = [*(joined or [Path(folder)]), *map(Path, others)] if others else joined
    return next((part for part in parts if "decoder" in read_diffusers_folder(part)[1]), Path(folder))


def describing_folder(path: Path) -> Path | None:
    """The folder whose description speaks of a decoder's file or folder; None for a file that is alone."""
    if is_diffusers_folder(path):
        return path
    if path.is_file() and is_component(path.parent):
        path = path.parent  # its weights, named by themselves
    parent = path.parent
    if (parent / BUNDLE_FILE).is_file():
        _, files = read_bundle(parent)
        named = {each.name for each in files.get("decoder", ())}
        return parent if path.name.removesuffix(".index.json") in named else None
    return parent if (parent / MODEL_INDEX).is_file() else None
