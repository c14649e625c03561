"""A folder that many processes fill in many goes holds what was made in one way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..writing import remove_leftovers, written_whole


def require_same(
    path: Path,
    facts: dict[str, Any],
    what: str,
    filled: Sequence[str],
    write: bool = True,
    *,
    beside: Sequence[str] = (),
    since: Sequence[str] = (),
) -> bool:
    """Write ``facts`` to a JSON file, or see that it holds the same. Before the folder is filled any further
    all processes have to have come here.

    Args:
        what: the folder is filled with, for the error.
        filled: patterns of the names of that; where nothing has one, other facts take the place of those that
            are there.
        write: False in all processes but the first.
        beside: patterns of the names of other files that come with what the folder is filled with.
        since: facts that older versions did not note: they are not missed where they are not there.

    Returns:
        Whether the folder is begun anew.

    Raises:
        ValueError: what is there was made in another way, and says what differs; or nobody knows how, since
            there is no such JSON file: a person's own files are neither taken for what is made nor replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    if not path.exists():
        _require_none(path, what, (*filled, *beside))
    if not path.exists() or not any(any(path.parent.glob(pattern)) for pattern in filled):
        if write:
            with written_whole(path) as unfinished:
                unfinished.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return True
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        known = {name: value for name, value in facts.items() if name in before or name not in since}
        changed = [f"{n} was {before.get(n)}, is {v}" for n, v in known.items() if before.get(n) != v]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: choose another folder, or remove it") from error
    if changed:
        raise ValueError(
            f"{path.parent} holds {what} that were made in another way: {'; '.join(changed)}. Choose another "
            f"folder"
        )
    return False


def _require_none(path: Path, what: str, patterns: Sequence[str]) -> None:
    found = next((each for pattern in patterns for each in sorted(path.parent.glob(pattern))), None)
    if found is not None and not path.exists():  # which another process may just have written
        raise ValueError(
            f"{path.parent} holds {found.name} and no {path.name}, which would say how it was made: it may "
            f"be your own, and is not to be mixed with {what} or replaced by them. Choose another folder"
        )
