"""Whole models in diffusers' layout as bundles: Karlo, Kandinsky's priors and decoders, alone or joined."""

from __future__ import annotations

from pathlib import Path

import torch

from ..embeddings.space import EmbeddingSpace
from ..stages import Bundle, Stage, StageName, UpsamplerStage
from .bundling import bundle_of
from .detect import identify
from .files.json_files import read_json_object
from .layouts.diffusers_files import CONFIG, MODEL_INDEX, is_component, open_component, snapshot
from .layouts.layout import load_layout
from .layouts.other_systems import KANDINSKY_3
from .layouts.transformers_clip import load_transformers_clip
from .native.checkpoints import require_stage

# Folders of the network by which a stage is found, and the folders of CLIP's two towers.
_STAGES: dict[StageName, tuple[str, ...]] = {
    "prior": ("prior", "prior_prior"),
    "decoder": ("decoder", "unet"),
    "upsampler": ("super_res_first",),
}
CLIP_FOLDERS = ("text_encoder", "image_encoder")
# Beside an encoder of the decoder's: those of a StableUnCLIP pipeline (Karlo's prior for Stable Diffusion's
# unCLIP), and of Kandinsky's combined ones, which are prior and decoder in one folder.
PRIOR_CLIP_FOLDERS = tuple(f"prior_{name}" for name in CLIP_FOLDERS)
_CLIP_KINDS = ("clip", "clip_text_model")  # `model_type`
_LATENT = "movq"  # beside "unet" where that is a decoder of Kandinsky


def is_diffusers_folder(folder: str | Path) -> bool:
    """Whether a folder is a whole model in diffusers' layout, or such a model in Hugging Face's cache."""
    return (snapshot(Path(folder)) / MODEL_INDEX).is_file()


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
    folder = snapshot(Path(folder))
    pipeline = read_json_object(folder / MODEL_INDEX).get("_class_name")
    if str(pipeline).startswith("Kandinsky3"):  # it has folders of the same names
        raise ValueError(f"{folder}: is {KANDINSKY_3}")
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
    if encoder_folders(folder):
        stages = {"clip": folder, **stages}
    return name, stages


def clip_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders of CLIP's text and image encoder, None for one that is missing."""
    # The encoders beside those of a prior are a decoder's.
    names = PRIOR_CLIP_FOLDERS if is_component(folder / PRIOR_CLIP_FOLDERS[0]) else CLIP_FOLDERS
    text, image = (folder / name if is_component(folder / name) else None for name in names)
    return (None if text == _decoder_text(folder) else text), image


def encoder_folders(folder: Path) -> list[Path]:
    """The folders of all encoders of a model: CLIP's, and that of a decoder which reads captions itself."""
    return [each for each in (*clip_folders(folder), _decoder_text(folder)) if each is not None]


def _decoder_text(folder: Path) -> Path | None:
    """The folder of the text encoder of Kandinsky 2.1's decoder, None where there is none."""
    text = folder / CLIP_FOLDERS[0]
    if not is_component(text) or not is_component(folder / _LATENT):
        return None
    # With prior and decoder of Kandinsky 2.2 in one folder it is the prior's, a CLIP model.
    return None if read_json_object(text / CONFIG).get("model_type") in _CLIP_KINDS else text


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
        _load(stage, path, device, dtype)
        for _, found in read
        for stage, path in found.items()
        if stage != "clip"
    ]
    spaces = [stage.space for stage in stages if not isinstance(stage, UpsamplerStage)]
    space = next((space for space in spaces if space.mean is not None), next(iter(spaces), None))
    for _, found in read:
        if "clip" in found:
            stages += _load_encoders(found["clip"], space, device, dtype)
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
    if stage == "clip":
        return _load_encoders(folders[stage], None, device, dtype)[0]
    return _load(stage, folders[stage], device, dtype)


def _load(stage: StageName, folder: Path, device: torch.device | str, dtype: torch.dtype | None) -> Stage:
    source = open_component(folder, dtype)
    layout = identify(source)
    require_stage(source.path, layout.stage, stage)
    return load_layout(layout, source, device, dtype)


def _load_encoders(
    folder: Path, space: EmbeddingSpace | None, device: torch.device | str, dtype: torch.dtype | None
) -> list[Stage]:
    """The CLIP model of a folder, and the text encoder of a decoder that reads captions itself."""
    loaded: list[Stage] = []
    text, image = clip_folders(folder)
    if text is not None or image is not None:
        of_prior = text is not None and text.name in PRIOR_CLIP_FOLDERS
        tokenizer = folder / ("prior_tokenizer" if of_prior else "tokenizer")
        checked = text is not None and (tokenizer / "vocab.json").is_file()
        clip = load_transformers_clip(
            text,
            image,
            tokenizer=tokenizer if checked else None,
            space=space,
            device=device,
            dtype=dtype,
        )
        loaded.append(clip)
    own = _decoder_text(folder)
    if own is not None:
        source = open_component(own, dtype)
        loaded.append(load_layout(identify(source, "clip"), source, device, dtype))
    return loaded
