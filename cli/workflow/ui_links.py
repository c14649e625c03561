"""The links of a UI-form graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class UiLink(NamedTuple):
    """A link of the UI form: from an output (by index) to an input (by index)."""

    source: str
    source_slot: int
    target: str
    target_slot: int


def read_links(links: Sequence[Any]) -> dict[Any, UiLink]:
    """Links by id, from the array form of version 0.4 or the object form of version 1 and of subgraphs.

    Places that hold nothing are passed over, as by ComfyUI's page. The form is checked, see `check_ui`.
    """
    found = {}
    for link in links:
        if link is None:
            continue
        if isinstance(link, dict):
            fields = [link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        else:
            fields = link[:5]
        link_id, source, source_slot, target, target_slot = fields
        found[link_id] = UiLink(str(source), source_slot, str(target), target_slot)
    return found
