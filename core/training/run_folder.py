"""What a run was made with, kept in its folder: the resolved config, versions, the revision of the code."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import config_to_dict
from ..writing import written_whole

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
_PACKAGES = ("unclip", "torch", "accelerate", "numpy", "pillow", "open_clip_torch")


def keep_run(folder: Path, stage: str, config: Any, *, write: bool = True, accept: bool = False) -> None:
    """Write ``run.json``; a run with a checkpoint goes on only with the config that it has been made with.

    Args:
        write: False in all processes but the first.
        accept: go on with a changed config, which ``run.json`` then has.

    Raises:
        ValueError: the config has changed; says what.
    """
    path = folder / NAME
    settings = json.loads(json.dumps(config_to_dict(config)))
    if (folder / "checkpoint.pt").exists() and path.exists():
        before = _read(path)
        if before.get("stage") != stage:
            raise ValueError(
                f"{folder} is a run of the stage {before.get('stage')}, not {stage}: choose another folder"
            )
        changed = changes(before.get("config", {}), settings)
        if not changed:
            return
        if not accept:
            raise ValueError(
                f"the config has changed since {folder} was begun: {'; '.join(changed)}. Train into another "
                f"folder (from the exported stage with loop.start_from), or go on with --accept-changes"
            )
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"stage": stage, "config": settings, "versions": _versions(), "git": _revision()}
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs of two configs and matters, as ``"loop.seed was 0, is 1"``."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        f"{name} was {_shown(old, name)}, is {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        # A field that a newer version brings is None or missing in what an older one wrote.
        if name not in FREE
        and not name.startswith(FREE_TABLES)
        and old.get(name) != new.get(name)
        and (name in old or not _is_default(new[name]))
    ]


def _is_free(name: str) -> bool:
    return name in FREE or name.startswith(FREE_TABLES)


def _is_default(value: Any) -> bool:
    return value in (None, False, 0, [], "")


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
