"""Whole models in diffusers' layout as bundles: Karlo, Kandinsky's priors and decoders, alone or joined."""

from __future__ import annotations

from pathlib import Path

import torch

from ..embeddings.space import EmbeddingSpace
from ..stages import Bundle, ClipStage, Stage, StageName, UpsamplerStage
from .bundling import bundle_of
from .detect import identify
from .files.json_files import read_json_object
from .layouts.diffusers_files import MODEL_INDEX, is_component, open_component
from .layouts.layout import load_layout
from .layouts.transformers_clip import load_transformers_clip
from .native.checkpoints import require_stage

# Folders of the network by which a stage is found, and the folders of CLIP's two towers.
_STAGES: dict[StageName, tuple[str, ...]] = {
    "prior": ("prior",),
    "decoder": ("decoder", "unet"),
    "upsampler": ("super_res_first",),
}
CLIP_FOLDERS = ("text_encoder", "image_encoder")
PRIOR_TEXT = "prior_text_encoder"  # of a StableUnCLIP pipeline: Karlo's prior for Stable Diffusion's unCLIP
_LATENT = "movq"  # beside "unet" where that is a decoder of Kandinsky
_CACHE, _CURRENT = "snapshots", Path("refs") / "main"  # of Hugging Face's cache


def is_diffusers_folder(folder: str | Path) -> bool:
    """Whether a folder is a whole model in diffusers' layout, or such a model in Hugging Face's cache."""
    return (_snapshot(Path(folder)) / MODEL_INDEX).is_file()


def joined_folders(folder: str | Path) -> list[Path]:
    """The models in diffusers' layout in a folder that is none itself: a prior and its decoder."""
    folder = Path(folder)
    if is_diffusers_folder(folder) or not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and is_diffusers_folder(each))


def read_diffusers_folder(folder: str | Path) -> tuple[str, dict[StageName, Path]]:
    """Name and the folder of each stage, from what is there; ``clip`` stands for the folder itself.

    Raises:
        ValueError: another pipeline than unCLIP's, or none of its networks.
    """
    name = Path(folder).name
    folder = _snapshot(Path(folder))
    pipeline = read_json_object(folder / MODEL_INDEX).get("_class_name")
    stages = {
        stage: folder / part
        for stage, parts in _STAGES.items()
        for part in parts
        if is_component(folder / part) and (part != "unet" or is_component(folder / _LATENT))
    }
    if not stages:
        raise ValueError(
            f"{folder}: holds a {pipeline or 'model'} of diffusers, which is not unCLIP; expected the "
            f"folders prior, decoder or super_res_first of Karlo, the folder prior of a Kandinsky prior, or "
            f"the folders unet and movq of a Kandinsky decoder. Choose another folder"
        )
    if any(clip_folders(folder)):
        stages = {"clip": folder, **stages}
    return name, stages


def _snapshot(folder: Path) -> Path:
    """The files of a model in Hugging Face's cache: its current snapshot; any other folder is itself."""
    snapshots = folder / _CACHE
    if not snapshots.is_dir():
        return folder
    current = folder / _CURRENT
    if current.is_file():
        found = snapshots / current.read_text(encoding="utf-8").strip()
        if found.is_dir():
            return found
    return max((each for each in snapshots.iterdir() if each.is_dir()), default=folder)


def clip_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders of CLIP's text and image encoder, None for one that is missing."""
    if is_component(folder / PRIOR_TEXT):  # the encoders beside it belong to another decoder than ours
        return folder / PRIOR_TEXT, None
    text, image = (folder / name if is_component(folder / name) else None for name in CLIP_FOLDERS)
    return text, image


def load_diffusers_bundle(
    *folders: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Bundle:
    """Load every stage of a model, or of several that belong together, in the CLIP space of the prior.

    Kandinsky's priors and decoders are separate downloads: give both. The bundle has the name of the first.

    Raises:
        ValueError: see :func:`read_diffusers_folder`; a stage that is incomplete, damaged, or of another
            model; a stage that two folders have.
    """
    read = [read_diffusers_folder(folder) for folder in folders]
    stages = [
        _load(stage, path, None, device, dtype)
        for _, found in read
        for stage, path in found.items()
        if stage != "clip"
    ]
    spaces = [stage.space for stage in stages if not isinstance(stage, UpsamplerStage)]
    space = next((space for space in spaces if space.mean is not None), next(iter(spaces), None))
    stages += [_load("clip", found["clip"], space, device, dtype) for _, found in read if "clip" in found]
    return bundle_of(read[0][0], stages)


def load_diffusers_stage(
    folder: str | Path,
    stage: StageName,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Stage:
    """Load one stage of a folder.

    Raises:
        ValueError: see :func:`load_diffusers_bundle`; there is no such stage.
    """
    _, folders = read_diffusers_folder(folder)
    if stage not in folders:
        raise ValueError(
            f"{folder}: has no {stage}, only {', '.join(folders)}; choose another folder or file"
        )
    return _load(stage, folders[stage], None, device, dtype)


def _load(
    stage: StageName,
    folder: Path,
    space: EmbeddingSpace | None,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Stage:
    if stage == "clip":
        return _load_clip(folder, space, device, dtype)
    source = open_component(folder, dtype)
    layout = identify(source)
    require_stage(source.path, layout.stage, stage)
    return load_layout(layout, source, device, dtype)


def _load_clip(
    folder: Path, space: EmbeddingSpace | None, device: torch.device | str, dtype: torch.dtype | None
) -> ClipStage:
    text, image = clip_folders(folder)
    if text is not None and is_component(folder / _LATENT):  # Kandinsky 2.1's decoder reads captions itself
        source = open_component(text, dtype)
        return load_layout(identify(source, "clip"), source, device, dtype)
    tokenizer = folder / ("prior_tokenizer" if (folder / PRIOR_TEXT) == text else "tokenizer")
    return load_transformers_clip(
        text,
        image,
        tokenizer=tokenizer if (tokenizer / "vocab.json").is_file() else None,
        space=space,
        device=device,
        dtype=dtype,
    )
