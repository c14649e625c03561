"""What a run was made with, kept in its folder: the resolved config, fingerprints of its
models, versions, the revision of the code."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..config import to_json
from ..writing import written_whole
from .fingerprint import fingerprint
from .frozen_clip import stage_file

NAME = "run.json"
# What may change in a run that goes on: how it is watched, kept and computed, not what it learns.
FREE = {
    "data.workers",
    "loop.accumulate",
    "loop.checkpoint_every",
    "loop.compile",
    "loop.gradient_checkpointing",
    "loop.keep_checkpoints",
    "loop.log_every",
    "loop.log_with",
    "loop.parallel",
    "loop.stop_at",
    "loop.validate_every",
    "loop.validation_batches",
}
FREE_TABLES = ("loop.sheet",)
# What of a config names a model that the run learns from. That of loop.start_from is read once.
MODELS = ("base", "clip", "text_encoder", "consistency.teacher")
_PACKAGES = ("unclip", "torch", "accelerate", "numpy", "pillow", "open_clip_torch")


def changed_run(folder: Path, stage: str, config: Any, *, accept: bool = False) -> dict[str, Any] | None:
    """What ``run.json`` is to say of a run from now on; None where it says so already.

    A run with a checkpoint goes on only with the config, and the models, that it has been made with.

    Args:
        accept: go on with a changed config.

    Raises:
        ValueError: the config or a model has changed; says what.
    """
    path = folder / NAME
    settings, models = to_json(config), _models_of(config)
    if (folder / "checkpoint.pt").exists() and path.exists():
        before = _read(path)
        if before.get("stage") != stage:
            raise ValueError(
                f"{folder} is a run of the stage {before.get('stage')}, not {stage}: choose another folder"
            )
        known = before.get("models") or models  # older versions did not keep them
        changed = changes(with_defaults(before.get("config", {}), config), settings)
        changed += [f"{name} is another model" for name in models if known.get(name) != models[name]]
        if not changed:
            return None
        if not accept:
            raise ValueError(
                f"the config has changed since {folder} was begun: {'; '.join(changed)}. Train into another "
                f"folder (from the exported stage with loop.start_from), or go on with --accept-changes"
            )
    return {
        "stage": stage,
        "config": settings,
        "models": models,
        "versions": _versions(),
        "git": _revision(),
    }


def keep_run(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / NAME) as unfinished:
        unfinished.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def with_defaults(before: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The table that an older version wrote of a config, with the defaults of fields that it did not know."""
    filled = dict(before)
    for field in fields(config):
        value, known = getattr(config, field.name), filled.get(field.name)
        if is_dataclass(value) and isinstance(known, Mapping):
            filled[field.name] = with_defaults(known, value)
        elif field.name not in filled and field.default is not MISSING:
            filled[field.name] = to_json(field.default)
        elif field.name not in filled and field.default_factory is not MISSING:
            filled[field.name] = to_json(field.default_factory())
    return filled


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs of two configs and matters, as ``"loop.seed was 0, is 1"``."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        f"{name} was {_shown(old, name)}, is {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in FREE and not name.startswith(FREE_TABLES) and old.get(name) != new.get(name)
    ]


def _models_of(config: Any) -> dict[str, str]:
    """The fingerprints of the models that a run learns from, by their names in its config."""
    found = {}
    for name in MODELS:
        value = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            found[name] = fingerprint(stage_file(Path(value)))
    return found


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "not set"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no table")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to go on with this config") from error
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str | None:
    """The commit of this code, with ``+`` where files have changed since; None outside of git."""
    here = ["git", "-C", str(Path(__file__).parent)]
    settings: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 20}
    try:
        commit = subprocess.run([*here, "rev-parse", "HEAD"], **settings).stdout.strip()
        changed = subprocess.run([*here, "status", "--porcelain", "-uno"], **settings).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
