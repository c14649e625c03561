"""JSON from files and options, within bounds that every workflow keeps."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100  # lists and objects in each other; workflows of ComfyUI have about ten


class JSONError(ValueError):
    """Text that is no JSON, or more deeply nested or with longer numbers than anything of ComfyUI's."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        JSONError: says what is wrong, and where.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise JSONError(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise JSONError(_too_deep()) from None
    except ValueError:  # Python refuses to convert whole numbers of more than 4300 digits
        raise JSONError("a number in it has thousands of digits") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for whole in level if isinstance(whole, (dict, list)) for part in _parts(whole)]
        if not level:
            return value
    raise JSONError(_too_deep())


def _parts(whole: dict | list) -> Any:
    return whole.values() if isinstance(whole, dict) else whole


def _too_deep() -> str:
    return f"its lists and objects are nested more than {MAX_DEPTH} deep"
