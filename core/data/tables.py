"""Tables that people write: CSV with names in its first row, and JSON Lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..text_files import decoded, read_text


def csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each row by the names of the columns; what a row lacks at its end is None.

    Raises:
        ValueError: another encoding, two columns of one name, a row with more fields than there are names,
            quotes that do not close.
        OSError: it cannot be read.
    """
    text = decoded(path.read_bytes(), str(path))
    filled = filter(None, csv.reader(io.StringIO(text, newline=""), strict=True))
    number = 0
    try:
        names = [name.strip() for name in next(filled, [])]
        _require_names(names, path)
        for number, fields in enumerate(filled, 1):
            if any(fields[len(names) :]):
                raise ValueError(
                    f"{path}, row {number}: found {len(fields)} fields, expected {len(names)}, as many as "
                    f"the first line names: put a text with a comma in it between quotes, "
                    f'such as "a fox, sitting"'
                )
            # Without a name there are the empty columns that spreadsheets leave at the end.
            yield {name: field for name, field in zip_longest(names, fields[: len(names)]) if name or field}
    except csv.Error as error:
        reason = f"{error}; are all quotes closed?"
        raise ValueError(f"{path} cannot be read after row {number}: {reason}") from error


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON object of each line that is not empty.

    Raises:
        ValueError: another encoding, or a line that is something else.
        OSError: it cannot be read.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object")
        yield found


def listed(row: Iterable[str]) -> str:
    """The columns of a row, for a message."""
    return ", ".join(map(str, row)) or "(nothing)"


def separator_hint(row: Collection[str]) -> str:
    """What to do about a table whose columns came as one: spreadsheets also write semicolons and tabs."""
    (only, *others) = row if row else ("",)
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if not others and separator in only:
            return f". The columns seem to be separated by {name}: save the table with commas"
    return ""


def _require_names(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: found two columns {', '.join(twice)}: give each a name of its own")
