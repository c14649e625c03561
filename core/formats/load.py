"""Load a stage or a bundle, whatever its format: unclip's own, or one that is recognised by its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..stages import Bundle, DecoderStage, Stage, StageName
from .defaults import read_defaults
from .detect import identify
from .diffusers_bundle import is_diffusers_folder, joined_folders, load_diffusers_bundle, load_diffusers_stage
from .few_steps import decoder_folder, describing_folder, with_described_steps
from .files.source import open_weights
from .files.weight_source import WeightSource
from .layouts.diffusers_files import is_component, open_component
from .layouts.layout import load_layout
from .native.checkpoints import BUNDLE_FILE, load_bundle, load_stage, require_stage
from .native.header import METADATA_KEY


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
    stage = _load_stage(path, expect, device, dtype)
    folder = describing_folder(Path(path)) if isinstance(stage, DecoderStage) else None
    return stage if folder is None else with_described_steps(stage, [folder])


def _load_stage(
    path: str | Path, expect: StageName | None, device: torch.device | str, dtype: torch.dtype | None
) -> Stage:
    if expect is not None and is_diffusers_folder(path):
        return load_diffusers_stage(path, expect, device=device, dtype=dtype)
    source = open_any(path, dtype)
    if is_native_source(source):
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
    if is_bundle(folder) and not (Path(folder) / BUNDLE_FILE).is_file():
        parts = joined_folders(folder)
        bundle = load_diffusers_bundle(*(parts or [folder]), *others, device=device, dtype=dtype)
        return replace(bundle, name=Path(folder).name) if parts else bundle
    if others:
        raise ValueError(
            f"{folder}: is a whole bundle of unclip, to which nothing can be joined; choose a model in "
            f"diffusers' layout, such as a prior of Kandinsky, or only this one"
        )
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


def is_native_source(source: WeightSource) -> bool:
    """Whether a source is in unclip's own format."""
    return METADATA_KEY in source.metadata
