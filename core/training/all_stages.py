"""All stages of a system from nothing, by one file: data, CLIP, priors, decoder, upsamplers, bundle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import config_from_dict
from ..data.pictograms import GROUPS, ICON_PACKAGES, download_packages, read_pictograms, write_shards
from ..data.process import current_process, together
from ..formats.load import load_any_stage
from ..formats.native.checkpoints import save_bundle
from ..stages import Bundle, ClipStage, DecoderStage, PriorStage, UpsamplerStage
from .loop import LoopReport
from .stages import RECIPES, overlay, read_toml, train_settings

Said = Callable[[str, LoopReport], None]


@dataclass(frozen=True)
class SystemRecipe:
    """The file of ``unclip train-all``.

    Attributes:
        name: of the bundle.
        data: the table ``[data]`` of every stage, where a stage does not say otherwise.
        stages: settings by name, which begins with the stage's: ``clip``, ``prior``, ``ar-prior``,
            ``decoder``, ``upsampler-256``; ``classifier`` is no part of the bundle, but may judge it.
            ``extends`` names a config file whose settings lie below them.
            ``clip`` of the others is filled in.
        evaluation: config file of ``unclip eval`` that the bundle is measured with; None for none.
    """

    name: str
    data: dict
    stages: dict
    evaluation: str | None = None


def read_recipe(path: Path) -> SystemRecipe:
    """The recipe of a TOML file, its stages resolved and in the order that they are trained in.

    Raises:
        ValueError: a file or a stage that cannot be read, or no CLIP model for those that need one.
    """
    found = config_from_dict(SystemRecipe, read_toml(path), str(path))
    stages: dict[str, Any] = {}
    for name, own in sorted(found.stages.items(), key=lambda entry: entry[0] != "clip"):
        if not isinstance(own, Mapping) or stage_of(name) is None:
            raise ValueError(
                f"{path}: stages.{name} is no table of a stage; names begin with {', '.join(RECIPES)}"
            )
        if "start_from" in _table(own, "loop"):
            raise ValueError(
                f"{path}: stages.{name}.loop.start_from: the stages of a recipe begin from nothing; take "
                f"it out, or train this stage alone by unclip train"
            )
        base = own.get("extends")
        if base is not None and not isinstance(base, str):
            raise ValueError(f"{path}: stages.{name}.extends is {base!r}, expected the name of a config file")
        below = {} if base is None else read_toml(path.parent / base)
        settings = overlay(
            overlay(below, {"data": found.data}), {k: v for k, v in own.items() if k != "extends"}
        )
        _table(settings, "loop").pop("start_from", None)  # of the file that it extends
        stages[name] = settings
    if "clip" not in stages:
        raise ValueError(f"{path}: stages has no clip, which the others learn from")
    return replace(found, stages=stages)


def _table(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def stage_of(name: str) -> str | None:
    """The stage that a name begins with."""
    return next((stage for stage in RECIPES if name == stage or name.startswith(f"{stage}-")), None)


def train_system(
    recipe: SystemRecipe,
    where: str,
    folder: Path,
    *,
    pictograms: Path | None = None,
    stages: Collection[str] = (),
    share: float = 1.0,
    cpu: bool = False,
    on_step: Said | None = None,
    accept_changes: bool = False,
) -> Path | None:
    """Train what ``folder`` does not hold yet, and put the bundle together once all stages are there.

    Args:
        where: names the recipe in errors.
        folder: takes ``data``, ``runs/NAME`` for each stage, and ``bundle``.
        pictograms: folder of shards to take in the place of ``data/pictograms``, which is built.
        stages: names of those to train; nothing for all of the recipe.
        share: of the steps of every stage.
        on_step: is told the name of the stage with each report.
        accept_changes: go on with runs though their settings have changed.

    Returns:
        The folder of the bundle, or of the runs while stages are missing; None where SIGTERM ended a stage,
        after a checkpoint.

    Raises:
        ValueError: settings that do not fit.
        OSError: something cannot be written.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected more than 0 and at most 1: of the steps")
    unknown = sorted(set(stages) - set(recipe.stages))
    if unknown:
        raise ValueError(f"{where} has no stage {', '.join(unknown)}: choose from {', '.join(recipe.stages)}")
    process = current_process()
    kinds = {settings["data"].get("source", "pictograms") for settings in recipe.stages.values()}
    if "pictograms" in kinds:
        pictograms = pictograms or _build_pictograms(folder / "data", process.rank == 0)
    together(process, ())
    for name, settings in recipe.stages.items():
        if stages and name not in stages:
            continue
        ready = _ready(settings, name, folder, pictograms, share)
        report = None if on_step is None else lambda state, name=name: on_step(name, state)
        stage = stage_of(name)
        assert stage is not None
        run = folder / "runs" / name
        ended = train_settings(
            stage, ready, f"{where}, {name}", run, cpu=cpu, on_step=report, accept_changes=accept_changes
        )
        if not ended:
            return None
    runs = folder / "runs"
    if stages and not all(_files_of(runs / name) for name in recipe.stages):
        return runs
    if process.rank == 0:
        _put_together(recipe, folder)
    return folder / "bundle"


def _ready(
    settings: Mapping[str, Any], name: str, folder: Path, pictograms: Path | None, share: float
) -> dict[str, Any]:
    """Settings with the places of data and CLIP, and a share of their steps."""
    ready = overlay(settings, {})
    if ready["data"].get("source", "pictograms") == "pictograms":
        ready["data"] = {**ready["data"], "shards": str(pictograms)}
    if stage_of(name) not in ("clip", "upsampler", "classifier"):
        ready["clip"] = str(_exported(folder / "runs" / "clip"))
    if share < 1:
        loop = dict(ready["loop"])
        for each in ("steps", "stop_at", "warmup", "checkpoint_every"):
            if each in loop:
                loop[each] = max(1, round(loop[each] * share))
        ready["loop"] = loop
    return ready


def judge_of(folder: Path) -> Path | None:
    """The classifier that :func:`train_system` has trained in ``folder``; None where its recipe has none."""
    run = folder / "runs" / "classifier"
    return _exported(run) if run.is_dir() else None


def _exported(run: Path) -> Path:
    """The file of the stage that a run has written."""
    found = _files_of(run)
    if not found:
        raise ValueError(f"{run} holds no finished stage: train it first, by --stage {run.name}")
    return found[0]


def _files_of(run: Path) -> list[Path]:
    return [*run.glob("*.safetensors.index.json"), *run.glob("*.safetensors")]


def _build_pictograms(folder: Path, build: bool) -> Path:
    shards = folder / "pictograms"
    if build and not any(shards.glob("*.tar")):
        download_packages(folder / "packages", list(ICON_PACKAGES))
        write_shards(read_pictograms(folder / "packages", list(ICON_PACKAGES), list(GROUPS)), shards)
    return shards


def _put_together(recipe: SystemRecipe, folder: Path) -> None:
    found: dict[str, Any] = {}
    upsamplers = []
    for name in recipe.stages:
        if stage_of(name) == "classifier":
            continue
        stage = load_any_stage(_exported(folder / "runs" / name))
        if isinstance(stage, UpsamplerStage):
            upsamplers.append(stage)
        elif isinstance(stage, PriorStage):
            found["ar_prior" if stage.diffusion is None else "prior"] = stage
        elif isinstance(stage, ClipStage | DecoderStage):
            found["clip" if isinstance(stage, ClipStage) else "decoder"] = stage
    upsamplers.sort(key=lambda stage: stage.low_size)
    bundle = Bundle(recipe.name, upsamplers=tuple(upsamplers), **found)
    save_bundle(bundle, folder / "bundle", dtype=torch.float16)
