"""Captions to paint, one a row, with a seed and options of their own; and which of them go together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..text_files import read_text
from .sources import caption_problem, field_of, text_of
from .tables import csv_rows, json_rows

ENDINGS = ("txt", "csv", "jsonl", "parquet")
SEEDS = 2**64  # as many as there are in PyTorch, and in ComfyUI


@dataclass(frozen=True)
class PromptRow:
    """One picture to make.

    Attributes:
        number: of the row, from 0.
        seed: its own, or the first seed and its number.
        options: other columns that are not empty, by name.
        problem: what is wrong with the row; empty for nothing.
    """

    number: int
    caption: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_prompts(
    path: Path, seed: int = 0, caption_field: str | None = None, setting: str = ""
) -> list[PromptRow]:
    """The rows of a file of captions, by its ending.

    A txt file has a caption a line; csv, jsonl and parquet have them in ``text`` or ``caption``, or in the
    field that is named, with ``seed`` and options in other fields.

    Args:
        caption_field: the field of the captions.
        setting: by which a person names that field; empty where there is none.

    Raises:
        ValueError: another kind of file, one that cannot be read, one without rows, or a field of captions
            that is not there.
    """
    kind = path.suffix[1:].lower()
    if kind not in ENDINGS:
        raise ValueError(f"{path}: expected a file of captions that ends in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if kind == "txt" and caption_field is not None:
        raise ValueError(
            f"{setting or 'caption_field'} is {caption_field}, but {path} has no fields: each line of a "
            f"txt file is a caption. Leave it out"
        )
    try:
        rows = [
            _row(number, facts, seed, caption_field, f"{path}, row {number + 1}", setting)
            for number, facts in enumerate(_facts(path, kind))
        ]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no captions")
    return rows


def groups(rows: list[PromptRow], size: int) -> list[list[PromptRow]]:
    """Rows that are painted together: of each ``size`` rows by number those with the same options and seeds
    in a row. What goes with what depends on nothing else, so that every picture is the same, bit by bit.
    """
    found: list[list[PromptRow]] = []
    for first in range(0, len(rows), size):
        part: list[PromptRow] = []
        for row in rows[first : first + size]:
            last = part[-1] if part else None
            fits = last is not None and row.options == last.options and row.seed == last.seed + 1
            if fits and not row.problem and not last.problem:
                part.append(row)
            else:
                part = [row]
                found.append(part)
    return found


def _facts(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    if kind == "txt":
        return ({"text": line.strip()} for line in read_text(path).split("\n") if line.strip())
    readers = {"csv": csv_rows, "jsonl": json_rows, "parquet": _parquet}
    return readers[kind](path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowInvalid, parquet  # an extra

    try:
        yield from parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _row(
    number: int, facts: dict[str, Any], first_seed: int, caption_field: str | None, where: str, setting: str
) -> PromptRow:
    value = field_of(facts, caption_field, where, setting)
    caption = text_of(value)
    names = (caption_field,) if caption_field else ("text", "caption")
    options = {
        str(name): _value(value)
        for name, value in facts.items()
        if name not in (*names, "seed") and value not in (None, "")
    }
    seed, problem = first_seed + number, ""
    if facts.get("seed") not in (None, ""):
        seed = _value(facts["seed"])
        if type(seed) is not int or not 0 <= seed < SEEDS:
            problem = f"its seed is {facts['seed']!r}, expected a whole number from 0 to {SEEDS - 1}"
            seed = first_seed + number
    if caption is None:
        problem = caption_problem(value)
    return PromptRow(number, caption or "", seed, options, problem)


def _value(value: Any) -> Any:
    """A number or a word from a table of text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value.strip()
    return value
