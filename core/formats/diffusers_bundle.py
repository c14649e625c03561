"""A whole folder in diffusers' layout, Karlo's or that of a Kandinsky prior, as one bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from ..embeddings.space import EmbeddingSpace
from ..stages import Bundle, ClipStage, Stage, StageName, UpsamplerStage
from .bundling import bundle_of
from .detect import identify
from .files.json_files import read_json
from .layouts.diffusers_files import MODEL_INDEX, is_component, open_component
from .layouts.layout import load_layout
from .layouts.transformers_clip import load_transformers_clip
from .native.checkpoints import require_stage

# Folder of the network by which a stage is found, and the folders of CLIP's two towers.
_STAGES: dict[StageName, str] = {"prior": "prior", "decoder": "decoder", "upsampler": "super_res_first"}
CLIP_FOLDERS = ("text_encoder", "image_encoder")
PRIOR_TEXT = "prior_text_encoder"  # of a StableUnCLIP pipeline: Karlo's prior for Stable Diffusion's unCLIP


def is_diffusers_folder(folder: str | Path) -> bool:
    """Whether a folder is a whole model in diffusers' layout."""
    return (Path(folder) / MODEL_INDEX).is_file()


def read_diffusers_folder(folder: str | Path) -> tuple[str, dict[StageName, Path]]:
    """Name and the folder of each stage, from what is there; ``clip`` stands for the folder itself.

    Raises:
        ValueError: another pipeline than unCLIP's, or none of its networks.
    """
    folder = Path(folder)
    index = read_json(folder / MODEL_INDEX)
    pipeline = index.get("_class_name") if isinstance(index, dict) else None
    stages = {stage: folder / name for stage, name in _STAGES.items() if is_component(folder / name)}
    if not stages:
        raise ValueError(
            f"{folder}: holds a {pipeline or 'model'} of diffusers, which is not unCLIP; expected the "
            f"folders prior, decoder or super_res_first of Karlo or a Kandinsky prior. Choose another folder"
        )
    if any(clip_folders(folder)):
        stages = {"clip": folder, **stages}
    return folder.name, stages


def clip_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders of CLIP's text and image encoder, None for one that is missing."""
    if is_component(folder / PRIOR_TEXT):  # the encoders beside it belong to another decoder than ours
        return folder / PRIOR_TEXT, None
    text, image = (folder / name if is_component(folder / name) else None for name in CLIP_FOLDERS)
    return text, image


def load_diffusers_bundle(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Bundle:
    """Load every stage of a folder, all in the CLIP space of the prior, which has the statistics.

    Raises:
        ValueError: see :func:`read_diffusers_folder`; a stage that is incomplete, damaged, or of another
            model.
    """
    name, folders = read_diffusers_folder(folder)
    stages = [_load(stage, path, None, device, dtype) for stage, path in folders.items() if stage != "clip"]
    if "clip" in folders:
        space = next((stage.space for stage in stages if not isinstance(stage, UpsamplerStage)), None)
        stages.append(_load("clip", folders["clip"], space, device, dtype))
    return bundle_of(name, stages)


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
    tokenizer = folder / ("prior_tokenizer" if (folder / PRIOR_TEXT) == text else "tokenizer")
    return load_transformers_clip(
        text,
        image,
        tokenizer=tokenizer if (tokenizer / "vocab.json").is_file() else None,
        space=space,
        device=device,
        dtype=dtype,
    )
