"""What a run can go on from: its checkpoint, written whole or not at all, and its log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PARTS = ("step", "network", "ema", "optimizer")
# Files that a write beside their place has left behind where its process was killed.
_LEFTOVER = re.compile(r"checkpoint\.tmp|\..+\.\d+(-[0-9a-f]{8})?\.tmp")


def save_checkpoint(path: Path, state: Mapping[str, Any], keep: int = 1, before: int = 0) -> None:
    """Write beside ``path``, down to the disk, then rename: what was there stays until all is written.

    Args:
        keep: how many checkpoints stay; older ones are named after their steps.
        before: step of the checkpoint that is there.

    Raises:
        ValueError: a weight or an average is not finite; what was there is kept.
        OSError: the disk is full or the folder cannot be written; what was there is kept.
    """
    for part in ("network", "ema"):
        for name, value in state[part].items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(
                    f"after step {state['step']} the weight {name} is not finite, so nothing was saved: "
                    f"{path} keeps the step that it has. Lower loop.learning_rate, or take loop.precision "
                    f'"bf16" or "no" instead of "fp16"'
                )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())  # a rename must not reach the disk before the content
        if keep > 1 and path.exists():
            _keep_as(path, path.with_stem(f"{path.stem}-{before:08}"))
        unfinished.replace(path)
        older = sorted(path.parent.glob(f"{path.stem}-{'[0-9]' * 8}{path.suffix}"))
        for each in older[: len(older) - (keep - 1)] if len(older) >= keep else ():
            each.unlink()
    except (OSError, RuntimeError) as error:  # torch's zip writer turns an OSError into a RuntimeError
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        kept = f"{path} keeps the step that it has" if path.exists() else "the run has no checkpoint yet"
        raise OSError(
            f"{path}: the checkpoint of step {state['step']} cannot be written ({error}); {kept}. "
            f"Is the disk full? Make room and start the run again"
        ) from error


def _keep_as(path: Path, older: Path) -> None:
    """A second name for what ``path`` is, which must not be without a name at any moment."""
    older.unlink(missing_ok=True)
    try:
        os.link(path, older)
    except OSError:  # a file system without links
        shutil.copyfile(path, older)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state that ``save_checkpoint`` wrote, on the CPU; None without one.

    Raises:
        ValueError: the file is cut short, of another kind, or holds weights that are not finite.
    """
    if not path.exists():
        return None
    again = "put an older checkpoint in its place, or remove it to start anew"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds over damaged files
        told = str(error).splitlines()
        # Over what is no archive at all torch explains its option weights_only.
        reason = "no PyTorch file" if not told or "weights_only" in str(error) else told[0]
        raise ValueError(f"{path} is damaged, or no checkpoint of a run ({reason}): {again}") from error
    missing = [part for part in PARTS if part not in state] if isinstance(state, dict) else list(PARTS)
    if missing:
        raise ValueError(f"{path} is no checkpoint of a run: it lacks {', '.join(missing)}; {again}")
    if type(state["step"]) is not int or state["step"] < 0:
        raise ValueError(f"{path}: its step is {state['step']!r}, expected a whole number; {again}")
    for part in ("network", "ema"):
        for name, value in _tensors(state[part], path, part, again).items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{path}: {part} {name} is not finite: {again}")
    return state


def require_same_step(folder: Path, steps: Sequence[int]) -> None:
    """Raise a ValueError unless all processes, by rank, start at the same step of the run in ``folder``."""
    if len(set(steps)) > 1:
        found = ", ".join(map(str, steps))
        raise ValueError(
            f"{folder}: the processes found checkpoints of different steps (by rank {found}; 0 is none), "
            f"so the run's folder is not shared: put it where all machines see the same files"
        )


def _tensors(state: Any, path: Path, part: str, again: str) -> dict[str, torch.Tensor]:
    tensors = isinstance(state, Mapping) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not tensors:
        raise ValueError(f"{path}: {part} is not a table of tensors; {again}")
    return dict(state)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing in its folder. A folder belongs to one run at a time."""
    for path in folder.iterdir():
        if not _LEFTOVER.fullmatch(path.name):
            continue
        if path.is_dir():  # of an export
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def cut_log(path: Path, step: int) -> None:
    """Take the rows after ``step`` out of a log, which a resumed run will write again, and a cut last row."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        unfinished.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        unfinished.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError):
        return float("inf")
