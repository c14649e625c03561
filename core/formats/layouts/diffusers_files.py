"""Folders as diffusers writes them: which file of a component holds its weights, and its JSON configs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ...diffusion.spec import MAX_TIMESTEPS, DiffusionSpec
from ..files.json_files import read_json_object
from ..files.source import open_weights
from ..files.weight_source import WeightSource
from .diffusers_settings import KIND, SCHEDULER_SETTINGS
from .settings import Settings

MODEL_INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
SCHEDULERS = f"../*scheduler/{SCHEDULER_CONFIG}"
"""Pattern of the configs that lie beside a component, see ``Layout.reads``."""

# name[.variant].safetensors, or the index of shards: name.safetensors.index[.variant].json; .bin likewise.
_WEIGHTS = re.compile(
    r"^(diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>\w+))?\.(?P<suffix>safetensors|bin)(?P<index>\.index(?:\.(?P<of>\w+))?\.json)?$"
)
_CACHE, _CURRENT = "snapshots", Path("refs") / "main"  # of Hugging Face's cache
_log = logging.getLogger(__name__)

_PRIOR_SCHEDULER = "UnCLIPScheduler"
# The schedulers of diffusers that clamp x̂0 where their config does not say; the others do not.
_CLAMPING = {_PRIOR_SCHEDULER, "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler"}
_CLAMPING |= {"DDIMParallelScheduler", "DDIMInverseScheduler", "RePaintScheduler"}
_HALF = {torch.float16: "fp16", torch.bfloat16: "bf16"}

_SCHEDULES = {"squaredcos_cap_v2": "cosine", "linear": "linear"}
_SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "even"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",  # the same variance, computed by way of its logarithm
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}


def snapshot(folder: Path) -> Path:
    """The files of a repository in Hugging Face's cache: its current snapshot; any other folder is itself."""
    snapshots = folder / _CACHE
    if not snapshots.is_dir():
        return folder
    current = folder / _CURRENT
    if current.is_file():
        found = snapshots / current.read_text(encoding="utf-8").strip()
        if found.is_dir():
            return found
    return max((each for each in snapshots.iterdir() if each.is_dir()), default=folder)


def is_component(folder: Path) -> bool:
    """Whether a folder holds one network of a diffusers folder, or is one in Hugging Face's cache."""
    return (snapshot(folder) / CONFIG).is_file()


def open_component(folder: Path, dtype: torch.dtype | None = None) -> WeightSource:
    """The weights of a component: its variant in ``dtype``, or the whole one; any other where it is alone.

    Raises:
        ValueError: no such folder, or no weights in it.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: there is no such folder, but its neighbours need it; download the whole model"
        )
    folder = snapshot(folder)
    found = {}
    for file in folder.iterdir():
        match = _WEIGHTS.match(file.name)
        if match:
            variant = match["variant"] or match["of"] or ""
            found[_rank(match["suffix"], variant, dtype), file.name] = file
    if not found:
        raise ValueError(
            f"{folder}: holds no weights (diffusion_pytorch_model.safetensors, its index, or .bin files); "
            f"download the folder again"
        )
    return open_weights(found[min(found)])


def neighbours(source: WeightSource, *names: str) -> list[WeightSource]:
    """The weights in the folders of these names beside that of a component, where they are there."""
    folders = (source.path.parent.parent / name for name in names)
    return [open_component(folder) for folder in folders if is_component(folder)]


def _rank(suffix: str, variant: str, dtype: torch.dtype | None) -> tuple[int, bool]:
    """The smaller the better: the variant in the type asked for, the whole one, halves, any other.

    Variants hold other weights (``non_ema``) or rounded ones: one that was not asked for only counts where
    nothing else is there. Of the same weights in two forms those in safetensors count.
    """
    rank = 1 if not variant else 2 if variant in _HALF.values() else 3
    return 0 if variant and variant == _HALF.get(dtype) else rank, suffix != "safetensors"


def read_config(
    folder: Path, expected: Settings | Mapping[str, tuple[Any, ...]] | None = None
) -> dict[str, Any]:
    """The config of a component; empty where there is none.

    Args:
        expected: what is made of its settings; of a plain mapping only the values that our networks compute,
            and settings that it does not name are passed over.

    Raises:
        ValueError: no JSON object, or a setting that is not honoured here.
    """
    path = folder / CONFIG
    config = read_json_object(path) if path.is_file() else {}
    if isinstance(expected, Settings):
        expected.require(path, config)
    elif expected is not None:
        Settings(KIND, expected).require(path, {name: config[name] for name in expected if name in config})
    return config


def read_number(config: Mapping[str, Any], name: str, default: int, where: Path) -> int:
    """A whole number of a config; of a list of equal ones (one for each level) its value.

    Args:
        where: the file, or the folder with its config.json, for the message.

    Raises:
        ValueError: anything else.
    """
    value = config.get(name)
    if value is None:
        return default
    values = value if isinstance(value, list) and value else [value]
    if not isinstance(values[0], int) or isinstance(values[0], bool) or len(set(map(str, values))) != 1:
        path = where if where.suffix == ".json" else where / CONFIG
        raise ValueError(f"{path}: {name} is {value!r}, expected a whole number")
    return values[0]


def read_scheduler(folder: Path, default: DiffusionSpec) -> DiffusionSpec:
    """How a network was trained to denoise, from its scheduler's config; ``default`` where there is none.

    Raises:
        ValueError: a process that is not known.
    """
    path = folder / SCHEDULER_CONFIG
    if not path.is_file():
        return default
    config = read_json_object(path)
    SCHEDULER_SETTINGS.require(path, config)
    scheduler = config.get("_class_name", _PRIOR_SCHEDULER)
    clip = config.get("clip_sample", scheduler in _CLAMPING)
    limit = config.get("clip_sample_range", 1.0)
    if not isinstance(limit, int | float) or limit <= 0:
        raise ValueError(f"{path}: clip_sample_range is {limit!r}, expected a positive number")
    own = scheduler == _PRIOR_SCHEDULER
    steps = read_number(config, "num_train_timesteps", 1000, path)
    if not 1 <= steps <= MAX_TIMESTEPS:
        raise ValueError(f"{path}: num_train_timesteps is {steps}, expected 1 to {MAX_TIMESTEPS:,}")
    schedule = _known(path, config, "beta_schedule", _SCHEDULES, "squaredcos_cap_v2" if own else "linear")
    # Of UnCLIPScheduler neither betas nor spacing can be set; those of the other schedulers have defaults.
    betas = None if own or schedule != "linear" else _betas(path, config)
    return DiffusionSpec(
        schedule=schedule,
        num_timesteps=steps,
        prediction=_known(path, config, "prediction_type", _PREDICTIONS, "epsilon"),
        variance=_known(path, config, "variance_type", _VARIANCES, "fixed_small_log"),
        clip_x0=float(limit) if clip else None,
        beta_start=None if betas is None else betas[0],
        beta_end=None if betas is None else betas[1],
        spacing="even" if own else _known(path, config, "timestep_spacing", _SPACINGS, "leading"),
    )


def scheduler_folder(root: Path, stage: Literal["prior", "decoder"]) -> Path:
    """The folder of a stage's scheduler in a model's, which need not be there.

    One named after the stage comes first. Kandinsky's prior and decoder both call theirs ``scheduler``: where
    both downloads were put into one folder, one took the place of the other, and is that of one of them.
    """
    own, shared = root / f"{stage}_scheduler", root / "scheduler"
    path = shared / SCHEDULER_CONFIG
    if own.is_dir() or not all((root / name).is_dir() for name in ("prior", "unet")) or not path.is_file():
        return own if own.is_dir() else shared
    owner = "prior" if read_json_object(path).get("_class_name") == _PRIOR_SCHEDULER else "decoder"
    if owner == stage:
        return shared
    _log.warning(
        "%s: is the %s's; that of the %s was overwritten by it, and the published one is taken. Put the two "
        "downloads into a folder each",
        path,
        owner,
        stage,
    )
    return own


def _betas(path: Path, config: Mapping[str, Any]) -> tuple[float, float]:
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if not all(isinstance(beta, float) for beta in (first, last)) or not 0 < first < last < 1:
        raise ValueError(
            f"{path}: beta_start is {first!r} and beta_end {last!r}, expected two numbers within 0 to 1, the "
            f"second the larger"
        )
    return first, last


def _known(path: Path, config: Mapping[str, Any], name: str, known: Mapping[str, Any], default: str) -> Any:
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{path}: {name} is {value!r}, expected one of {', '.join(known)}")
    return known[value]
