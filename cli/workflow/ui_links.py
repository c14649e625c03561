"""The links of a UI-form graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import WorkflowError, shown


class UiLink(NamedTuple):
    """A link of the UI form: from an output (by index) to an input (by index)."""

    source: str
    source_slot: int
    target: str
    target_slot: int


def read_links(links: Sequence[Any]) -> dict[Any, UiLink]:
    """Links by id, from the array form of version 0.4 or the object form of version 1 and of subgraphs."""
    found = {}
    for link in links:
        if isinstance(link, dict):
            fields = [link.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        elif isinstance(link, list) and len(link) >= 5:
            fields = link[:5]
        else:
            raise WorkflowError(
                f"links: expected [id, source, slot, target, slot, type], found {shown(link)}."
            )
        link_id, source, source_slot, target, target_slot = fields
        found[link_id] = UiLink(str(source), int(source_slot), str(target), int(target_slot))
    return found
