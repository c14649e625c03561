"""JSON files, with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); get the file again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds a table.

    Raises:
        ValueError: as :func:`read_json`, or it holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found {found!r}, expected a JSON object; get the file again")
    return found
