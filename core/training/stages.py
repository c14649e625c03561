"""The stages that can be trained, and how a config file becomes a run."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import config_from_dict
from ..data.opening import workers_of
from ..data.process import current_process
from ..memory import is_out_of_memory, lack_of_memory
from ..text_files import read_text
from .loop import LoopReport, train
from .recipe import Recipe
from .run_folder import changed_run, keep_run

# Stage → module and its classes; imported when needed, since a recipe brings its networks along.
RECIPES: dict[str, tuple[str, str, str]] = {
    "clip": (".recipes.clip", "ClipTraining", "ClipRecipe"),
    "prior": (".recipes.prior", "PriorTraining", "PriorRecipe"),
    "ar-prior": (".recipes.ar_prior", "AutoregressivePriorTraining", "AutoregressivePriorRecipe"),
    "decoder": (".recipes.decoder", "DecoderTraining", "DecoderRecipe"),
    "upsampler": (".recipes.upsampler", "UpsamplerTraining", "UpsamplerRecipe"),
    "classifier": (".recipes.classifier", "ClassifierTraining", "ClassifierRecipe"),
}

# The same stages where the config names a ``base`` in the place of a [model].
TUNED: dict[str, tuple[str, str, str]] = {
    "prior": (".recipes.tuned_prior", "PriorTuning", "TunedPriorRecipe"),
    "decoder": (".recipes.tuned_decoder", "DecoderTuning", "TunedDecoderRecipe"),
}


def train_stage(
    stage: str,
    config_file: Path,
    folder: Path,
    *,
    steps: int | None = None,
    cpu: bool = False,
    on_step: Callable[[LoopReport], None] | None = None,
    accept_changes: bool = False,
) -> bool:
    """Train ``stage`` from a TOML file, resuming what ``folder`` holds.

    Args:
        steps: stop after this step of the config's learning-rate schedule; None for all.
        accept_changes: go on with a run though its config has changed.

    Returns:
        Whether the run came to its end; False where SIGTERM ended it, after a checkpoint.

    Raises:
        ValueError: an unknown stage, or settings that do not fit it.
    """
    return train_settings(
        stage,
        read_toml(config_file),
        str(config_file),
        folder,
        steps=steps,
        cpu=cpu,
        on_step=on_step,
        accept_changes=accept_changes,
    )


def train_settings(
    stage: str,
    settings: Mapping[str, Any],
    where: str,
    folder: Path,
    *,
    steps: int | None = None,
    cpu: bool = False,
    on_step: Callable[[LoopReport], None] | None = None,
    accept_changes: bool = False,
) -> bool:
    """As :func:`train_stage`, from settings that come from ``where``."""
    try:
        config, recipe = build_recipe(stage, settings, where, resumed=(folder / "checkpoint.pt").exists())
    except ValueError as error:
        if where in str(error):
            raise
        raise ValueError(f"{where}: {error}") from error
    loop = config.loop if steps is None else replace(config.loop, stop_at=min(steps, config.loop.steps))
    facts = changed_run(folder, stage, config, accept=accept_changes)
    workers = workers_of(config.data, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    keep = None if facts is None else partial(keep_run, folder, facts)
    try:
        return train(recipe, loop, folder, on_step, cpu=cpu, workers=workers, on_start=keep)
    except (MemoryError, RuntimeError, OSError) as error:
        lack = lack_of_memory(error)
        if lack is None:
            raise
        raise ValueError(
            f"{where}: {lack}. loop.accumulate says in how many parts the {loop.batch_size} rows of a step "
            f"are taken, now {loop.accumulate}; loop.gradient_checkpointing and fewer data.workers take less "
            f"memory, too. Started again, the run goes on from its last checkpoint"
        ) from error


def build_recipe(
    stage: str, settings: Mapping[str, Any], where: str, resumed: bool = False
) -> tuple[Any, Recipe]:
    """The config and the recipe of a stage from plain settings, with the first weights of ``loop.seed``.

    Args:
        resumed: a checkpoint will bring the weights, and what is fitted to the data.
    """
    if stage not in RECIPES:
        raise ValueError(f"unknown stage {stage!r}: choose from {', '.join(RECIPES)}")
    if "base" in settings and stage not in TUNED:
        raise ValueError(
            f"base: a {stage} starts from a model of our own only, by loop.start_from and its [model]; a "
            f"base is for {' and '.join(TUNED)}"
        )
    module_name, config_name, recipe_name = (TUNED if "base" in settings else RECIPES)[stage]
    module = importlib.import_module(module_name, __package__)
    config = config_from_dict(getattr(module, config_name), settings, where)
    with torch.random.fork_rng(devices=[]):  # networks are built on the CPU
        torch.default_generator.manual_seed(config.loop.seed)
        try:
            recipe: Recipe = getattr(module, recipe_name)(config, current_process())
            if not resumed and config.loop.start_from is None:
                recipe.fit()
            return config, recipe
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"{where}: the memory does not hold the network of [model]: check its widths and layers"
            ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, over those of the file that its key ``extends`` names.

    That name is relative to the file, which may extend another one in turn. Tables are merged key by key, at
    all depths; every other value, lists too, replaces the one of the extended file.

    Raises:
        ValueError: no such file, not TOML, or files that extend each other in a circle.
    """
    settings, files = _parse_toml(path), [path]
    while (name := settings.pop("extends", None)) is not None:
        if not isinstance(name, str):
            raise ValueError(
                f"{files[-1]}: extends is {name!r}, expected the name of a config file, such as decoder.toml"
            )
        if "\0" in name:  # which no file system has in a name
            raise ValueError(f"{files[-1]}: extends {name!r}, which cannot be the name of a file")
        base = files[-1].parent / name
        if base.resolve() in [file.resolve() for file in files]:
            circle = " → ".join(file.name for file in (*files, base))
            raise ValueError(f"{path}: extends leads in a circle, {circle}; take it out of one of them")
        if not _is_file(base):
            raise ValueError(f"{files[-1]}: extends {name!r}, but there is no config file {base}")
        settings = overlay(_parse_toml(base), settings)
        files.append(base)
    return settings


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def overlay(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others, as ``extends`` lays them."""
    merged = dict(base)
    for name, value in settings.items():
        both_tables = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = overlay(merged[name], value) if both_tables else value
    return merged


def _parse_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"no config file {path}") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except ValueError as error:  # no TOML, or a number of thousands of digits
        raise ValueError(f"{path} is not a TOML file: {error}") from None
