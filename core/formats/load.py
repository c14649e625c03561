"""Load a stage or a bundle, whatever its format: unclip's own, or one that is recognised by its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..stages import Bundle, DecoderStage, Stage, StageName
from .defaults import read_defaults
from .detect import LAYOUTS, identify, identify_all
from .diffusers_bundle import is_diffusers_folder, joined_folders, load_diffusers_bundle, load_diffusers_stage
from .few_steps import decoder_folder, describing_folder, with_described_steps
from .files.source import open_weights
from .files.weight_source import WeightSource
from .layouts.diffusers_files import is_component, open_component, snapshot
from .layouts.layout import load_layout
from .loose_stages import about_loose_stages
from .native.checkpoints import BUNDLE_FILE, load_bundle, load_stage, require_stage
from .native.header import is_native


def load_any_stage(
    path: str | Path,
    *,
    expect: StageName | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Stage:
    """Load a stage from a file of any known format.

    Args:
        path: see :func:`open_any`; with ``expect`` also a whole model in diffusers' layout.
        expect: which stage it has to be; None takes any.
        dtype: to which the weights are converted; None keeps the file's.

    Returns:
        The stage, its network in evaluation mode and without gradients.

    Raises:
        ValueError: no known checkpoint (what it is instead, where that can be told), another stage than
            expected, or one that is incomplete, damaged or changed.
    """
    return _with_steps_beside(path, _load_stage(path, expect, device, dtype))


def load_all_stages(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> list[Stage]:
    """Load every stage of a file or folder: GLIDE's hold a text encoder besides, others a single one.

    Raises:
        ValueError: see :func:`load_any_stage`.
    """
    source = open_any(path, dtype)
    if is_native(source):
        return [load_any_stage(path, device=device, dtype=dtype)]
    stages = [load_layout(layout, source, device, dtype) for layout in identify_all(source)]
    return [_with_steps_beside(path, stage) for stage in stages]


def files_beside(path: Path) -> list[Path]:
    """The files that loading a stage from here may read besides its own weights: by their names, none opened.

    Args:
        path: of a file, or of the folder of a network in diffusers' layout.
    """
    folder = snapshot(path) if path.is_dir() else path.parent
    found = {each for layout in LAYOUTS for pattern in layout.reads for each in folder.glob(pattern)}
    found |= {each for around in (folder, path.parent) for each in around.glob("*.json")}
    return sorted(each for each in found if each.is_file())


def _with_steps_beside(path: str | Path, stage: Stage) -> Stage:
    """A stage with what the folder of its file knows of its steps."""
    if not isinstance(stage, DecoderStage):
        return stage
    folder = describing_folder(Path(path))
    return stage if folder is None else with_described_steps(stage, [folder])


def _load_stage(
    path: str | Path, expect: StageName | None, device: torch.device | str, dtype: torch.dtype | None
) -> Stage:
    if expect is not None and is_diffusers_folder(path):
        return load_diffusers_stage(path, expect, device=device, dtype=dtype)
    source = open_any(path, dtype)
    if is_native(source):
        return load_stage(source.path, expect=expect, device=device, dtype=dtype)
    layout = identify(source, expect)
    require_stage(source.path, layout.stage, expect)
    return load_layout(layout, source, device, dtype)


def load_any_bundle(
    folder: str | Path,
    *others: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Bundle:
    """Load all stages of a folder: a bundle of unclip, or whole models in diffusers' layout.

    Args:
        folder: may also be a folder of such models, as Kandinsky's prior and decoder are.
        others: more models in diffusers' layout that belong to the first.

    Raises:
        ValueError: neither of them, or a stage in it that cannot be loaded.
    """
    bundle = _load_bundle(folder, others, device, dtype)
    bundle = replace(bundle, defaults=read_defaults(described_folders(folder, *others)))
    if bundle.decoder is None:
        return bundle
    places = [decoder_folder(folder), *others]
    return replace(bundle, decoder=with_described_steps(bundle.decoder, places))


def described_folders(folder: str | Path, *others: str | Path) -> list[Path]:
    """All folders whose descriptions speak of one bundle."""
    native = (Path(folder) / BUNDLE_FILE).is_file()
    parts = [] if native else [Path(part) for part in joined_folders(folder)]
    return [Path(folder), *parts, *map(Path, others)]


def _load_bundle(
    folder: str | Path,
    others: Sequence[str | Path],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Bundle:
    for other in others:
        if not is_diffusers_folder(other):
            raise ValueError(
                f"{other}: is no model in diffusers' layout, which alone can be joined to {folder}; choose a "
                f"folder with a model_index.json, such as Kandinsky's decoder beside its prior"
            )
    if is_bundle(folder) and not (Path(folder) / BUNDLE_FILE).is_file():
        parts = joined_folders(folder)
        bundle = load_diffusers_bundle(*(parts or [folder]), *others, device=device, dtype=dtype)
        return replace(bundle, name=Path(folder).name) if parts else bundle
    if others:
        raise ValueError(
            f"{folder}: is a whole bundle of unclip, to which nothing can be joined; choose a model in "
            f"diffusers' layout, such as a prior of Kandinsky, or only this one"
        )
    if not is_bundle(folder) and (what := about_loose_stages(folder)) is not None:
        raise ValueError(what)
    return load_bundle(folder, device=device, dtype=dtype)


def is_bundle(folder: str | Path) -> bool:
    """Whether a folder claims to be a whole model, of unclip's format or in diffusers' layout."""
    own = (Path(folder) / BUNDLE_FILE).is_file()
    return own or is_diffusers_folder(folder) or len(joined_folders(folder)) > 0


def open_any(path: str | Path, dtype: torch.dtype | None = None) -> WeightSource:
    """Open a checkpoint: a file (see :func:`open_weights`), or the folder of a network in diffusers' layout.

    Args:
        dtype: of several variants in a folder, the one in this type is preferred.
    """
    path = Path(path)
    return open_component(path, dtype) if path.is_dir() and is_component(path) else open_weights(path)
