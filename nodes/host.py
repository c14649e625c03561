"""What the nodes need from the program that runs them: ComfyUI's services, or stand-ins outside of it.

Model folders, device and memory, precision, progress with a live preview, interruption. This is the only file
that imports ComfyUI, and it does so only in a process in which ComfyUI is already loaded: importing
``comfy.model_management`` anywhere else would start up ComfyUI's device management behind the user's back.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import precision as core_precision

if TYPE_CHECKING:
    from ..core.diffusion.samplers import SamplerStep, StepCallback

PACK_FOLDER = Path(__file__).resolve().parent.parent
PACK_NAME = Path(__file__).absolute().parent.parent.name  # in custom_nodes, where a link has its own
MODEL_FOLDER_NAME = "unclip"
MODEL_FOLDERS_VARIABLE = "UNCLIP_MODELS"
LORA_FOLDERS_VARIABLE = "UNCLIP_LORAS"
LORA_FOLDER_NAME = "loras"
MODEL_EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

EXACT_PREVIEW_SIZE = 256
PREVIEW_SIZE = 1024  # a picture of the last upsampler is shown in its own size

ProgressUpdate = Callable[[int, int], None]
"""Told the number of steps done and the total."""

ProgressFactory = Callable[[str, int], AbstractContextManager[ProgressUpdate]]
"""Given a title and the expected number of steps, opens a progress display and yields its update function."""


def comfyui() -> SimpleNamespace | None:
    """ComfyUI's modules where this process is a ComfyUI server, else None."""
    if "folder_paths" not in sys.modules or "comfy.model_management" not in sys.modules:
        return None
    import comfy.model_management
    import comfy.utils
    import folder_paths

    return SimpleNamespace(
        folders=folder_paths, models=comfy.model_management, ProgressBar=comfy.utils.ProgressBar
    )


# ---------------------------------------------------------------------------------------------- model folders


def model_folders() -> list[Path]:
    """Folders that are searched for bundles and stage files, the first match wins.

    The pack's own ``models`` folder with the embedded bundle comes first. In ComfyUI the folders registered
    as ``unclip`` follow: ``models/unclip`` and whatever extra_model_paths.yaml adds. Outside ComfyUI: the
    folders named in the environment variable UNCLIP_MODELS (separated as in PATH), or ``models/unclip`` of
    the ComfyUI in whose ``custom_nodes`` the pack lies.
    """
    comfy = comfyui()
    if comfy is not None:
        _register_model_folder(comfy.folders)
        registered = [Path(folder) for folder in comfy.folders.get_folder_paths(MODEL_FOLDER_NAME)]
    elif os.environ.get(MODEL_FOLDERS_VARIABLE):
        registered = [Path(f) for f in os.environ[MODEL_FOLDERS_VARIABLE].split(os.pathsep) if f]
    elif PACK_FOLDER.parent.name == "custom_nodes":
        registered = [PACK_FOLDER.parent.parent / "models" / MODEL_FOLDER_NAME]
    else:
        registered = []
    return [PACK_FOLDER / "models", *registered]


def lora_folders() -> list[Path]:
    """Folders that are searched for LoRA files, the first match wins.

    In ComfyUI those of its own ``loras``; outside of it those named in the environment variable UNCLIP_LORAS
    (separated as in PATH). Everywhere also a folder ``loras`` in each of the model folders.
    """
    comfy = comfyui()
    if comfy is not None:
        theirs = [Path(folder) for folder in comfy.folders.get_folder_paths(LORA_FOLDER_NAME)]
    elif os.environ.get(LORA_FOLDERS_VARIABLE):
        theirs = [Path(f) for f in os.environ[LORA_FOLDERS_VARIABLE].split(os.pathsep) if f]
    elif PACK_FOLDER.parent.name == "custom_nodes":
        theirs = [PACK_FOLDER.parent.parent / "models" / LORA_FOLDER_NAME]
    else:
        theirs = []
    return [*theirs, *(folder / LORA_FOLDER_NAME for folder in model_folders()[1:])]


named_bundles: dict[str, Path] = {}
"""Folders by names that hold in this process alone, before those in the model folders. The folder around one
may hold a whole disk, so it becomes no model folder, which would be searched."""

named_loras: dict[str, Path] = {}
"""LoRA files in the same way."""


def _register_model_folder(folder_paths) -> None:
    """Make ``models/unclip`` known to ComfyUI, keeping the folders that extra_model_paths.yaml has set."""
    default = str(Path(folder_paths.models_dir) / MODEL_FOLDER_NAME)
    known = folder_paths.folder_names_and_paths.get(MODEL_FOLDER_NAME)
    if known is not None and default in known[0] and set(MODEL_EXTENSIONS) <= set(known[1]):
        return
    folder_paths.add_model_folder_path(MODEL_FOLDER_NAME, default, is_default=True)
    # A folder that is new to ComfyUI has an empty extension set, which lists every file, pictures too.
    paths, extensions = folder_paths.folder_names_and_paths[MODEL_FOLDER_NAME]
    folder_paths.folder_names_and_paths[MODEL_FOLDER_NAME] = (paths, set(extensions) | set(MODEL_EXTENSIONS))


# ----------------------------------------------------------------------------------- input and output folders

_input_folder: Path | None = None
_output_folder: Path | None = None
_on_written: Callable[[Path], object] | None = None


def set_folders(
    input_folder: Path | None, output_folder: Path | None, on_written: Callable[[Path], object] | None = None
) -> None:
    """Choose where nodes read and write outside ComfyUI, and who is told of the files that they wrote.

    None restores the defaults, ``input`` and ``output`` in the current folder.
    """
    global _input_folder, _output_folder, _on_written
    _input_folder, _output_folder, _on_written = input_folder, output_folder, on_written


def input_folder() -> Path:
    """The folder of a person's own files."""
    comfy = comfyui()
    return (_input_folder or Path("input")) if comfy is None else Path(comfy.folders.get_input_directory())


def output_folder() -> Path:
    """The folder of results."""
    comfy = comfyui()
    return (_output_folder or Path("output")) if comfy is None else Path(comfy.folders.get_output_directory())


def report_written(path: Path) -> None:
    """Tell of a file that a node wrote."""
    if _on_written is not None:
        _on_written(path)


# ------------------------------------------------------------------------------- device, memory and precision

_chosen_device: torch.device | None = None


def set_device(name: str | None) -> None:
    """Choose the device outside ComfyUI, for example ``"cpu"`` or ``"cuda:1"``; None for the best one.

    Raises:
        ValueError: PyTorch knows no such device, or it is not there.
    """
    global _chosen_device
    _chosen_device = None if name is None else core_precision.as_device(name)


def compute_device() -> torch.device:
    """The device on which stages run."""
    comfy = comfyui()
    if comfy is not None:
        return comfy.models.get_torch_device()
    if _chosen_device is not None:
        return _chosen_device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def result_device() -> torch.device:
    """The device on which results travel between nodes: the CPU, unless ComfyUI is to stay on the GPU."""
    comfy = comfyui()
    return torch.device("cpu") if comfy is None else comfy.models.intermediate_device()


def choose_dtype(precision: str) -> torch.dtype:
    """Number format of a stage's weights for a ``precision`` input, see ``core.precision``.

    In ComfyUI its own options and the device decide what ``auto`` is on a GPU. The CPU's rule is the same
    inside and outside ComfyUI, so that a seed gives the same picture in both.

    Raises:
        ValueError: an unknown precision.
    """
    device, comfy = compute_device(), comfyui()
    if precision == "auto" and comfy is not None and device.type != "cpu":
        liked = [torch.float16, torch.bfloat16, torch.float32]  # in this order
        asked = comfy.models.unet_dtype(device=device, supported_dtypes=liked)
        return asked if asked in liked else torch.float16  # float8 storage needs layers that we do not use
    return core_precision.choose_dtype(precision, device)


def managed_model(network: nn.Module, device: torch.device) -> Any:
    """A network as one of the models that ComfyUI loads and unloads; only for a process that is ComfyUI."""
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(
        network, load_device=device, offload_device=comfyui().models.unet_offload_device()
    )


# -------------------------------------------------------------------------------- ComfyUI's kinds of objects


def clip_vision_output(image_embeds: Tensor) -> Any:
    """What CLIP Vision Encode would give: ComfyUI's own object, outside of it one with the same attributes.

    Only the embedding is known; the hidden states, which some nodes read instead, are None.

    Args:
        image_embeds: [B, D].
    """
    if comfyui() is None:
        output: Any = SimpleNamespace()
    else:
        import comfy.clip_vision

        output = comfy.clip_vision.Output()
    output.image_embeds = image_embeds
    output.last_hidden_state = None
    output.penultimate_hidden_states = None
    output.mm_projected = None
    return output


def native_sampling() -> SimpleNamespace:
    """ComfyUI's modules of which a MODEL for its own samplers is made.

    Raises:
        ValueError: this process is no ComfyUI server.
    """
    if comfyui() is None:
        raise ValueError(
            "a model for ComfyUI's own samplers needs ComfyUI, and this program runs without it. Use unCLIP "
            "Decode, which samples the same decoder everywhere."
        )
    import comfy.conds
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.model_sampling
    import comfy.patcher_extension
    import comfy.supported_models_base

    return SimpleNamespace(
        Condition=comfy.conds.CONDRegular,
        PlacedCondition=comfy.conds.CONDNoiseShape,
        LatentFormat=comfy.latent_formats.LatentFormat,
        BaseModel=comfy.model_base.BaseModel,
        ModelType=comfy.model_base.ModelType,
        ModelPatcher=comfy.model_patcher.ModelPatcher,
        Callbacks=comfy.patcher_extension.CallbacksMP,
        patching=comfy.patcher_extension,
        sampling=comfy.model_sampling,
        Config=comfy.supported_models_base.BASE,
        models=comfy.model_management,
    )


def native_autoencoding() -> SimpleNamespace:
    """ComfyUI's modules of which a VAE for its own nodes is made.

    Raises:
        ValueError: this process is no ComfyUI server.
    """
    if comfyui() is None:
        raise ValueError(
            "a VAE for ComfyUI's own nodes needs ComfyUI, and this program runs without it. Use unCLIP "
            "Decode, which gives pictures everywhere."
        )
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd

    return SimpleNamespace(
        VAE=comfy.sd.VAE, ModelPatcher=comfy.model_patcher.ModelPatcher, models=comfy.model_management
    )


# ------------------------------------------------------------------------ progress, preview and interruption


@contextmanager
def _tqdm_progress(title: str, total: int) -> Iterator[ProgressUpdate]:
    from tqdm import tqdm

    with tqdm(total=total, desc=title, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


_progress_factory: ProgressFactory = _tqdm_progress


def set_progress_factory(factory: ProgressFactory | None) -> None:
    """Choose how progress is shown outside ComfyUI; None restores the default, a tqdm bar."""
    global _progress_factory
    _progress_factory = factory or _tqdm_progress


@contextmanager
def stage_progress(title: str, total: int, *, pictures: bool = False) -> Iterator[StepCallback]:
    """Show the progress of one stage; yields the callback to give to a pipeline.

    In ComfyUI the callback also sends a live preview and stops the sampler when the user has pressed Stop: it
    raises ComfyUI's InterruptProcessingException, which nothing here may swallow.

    Args:
        title: what is running, for displays that name it.
        total: expected number of steps; the sampler's own total replaces it at the first step.
        pictures: the sampler's x̂0 is [B, 3, H, W] in −1..1 and can be previewed.
    """
    comfy = comfyui()
    if comfy is None:
        with _progress_factory(title, total) as update:
            yield lambda step: update(step.index + 1, step.total)
        return

    bar = comfy.ProgressBar(total)

    def on_step(step: SamplerStep) -> None:
        comfy.models.throw_exception_if_processing_interrupted()
        # Without a size ComfyUI leaves the picture as it is: with one it would enlarge a small picture, and
        # the page would call 64 pixels 512.
        preview = _preview(step.x0) if pictures else None
        bar.update_absolute(step.index + 1, step.total, preview)

    comfy.models.throw_exception_if_processing_interrupted()
    bar.update_absolute(0, total)
    yield on_step


@contextmanager
def count_progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Show the progress of work that is counted; yields a function to tell the number of what is done.

    The function takes another total behind it. In ComfyUI it raises InterruptProcessingException when the
    user has pressed Stop.
    """
    comfy = comfyui()
    if comfy is None:
        with _progress_factory(title, total) as update:
            yield lambda done, of=total: update(done, of)
        return

    bar = comfy.ProgressBar(total)

    def on_count(done: int, of: int = total) -> None:
        comfy.models.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, of)

    on_count(0)
    yield on_count


def _preview(x0: Tensor) -> tuple[str, Image.Image, None]:
    """A preview as ComfyUI takes it: small pictures exact, because JPEG blurs the colours of neighbours."""
    picture = preview_picture(x0)
    return ("PNG" if max(picture.size) <= EXACT_PREVIEW_SIZE else "JPEG"), picture, None


def preview_picture(x0: Tensor, limit: int = PREVIEW_SIZE) -> Image.Image:
    """[B, 3, H, W] in −1..1 → one picture with the batch side by side, no side longer than ``limit``."""
    batch, _, height, width = x0.shape
    columns = math.ceil(batch**0.5)
    rows = math.ceil(batch / columns)
    shrink = min(1.0, limit / (columns * width), limit / (rows * height))
    if shrink < 1.0:
        size = (max(1, int(height * shrink)), max(1, int(width * shrink)))
        x0 = F.interpolate(x0.float(), size=size, mode="area")
    pixels = ((x0.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    pixels = torch.cat([pixels, pixels.new_zeros(rows * columns - batch, *pixels.shape[1:])])
    return Image.fromarray(rearrange(pixels, "(r c) rgb h w -> (r h) (c w) rgb", r=rows).numpy())
