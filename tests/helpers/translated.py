"""What every registered node declares, for the tests of help pages and translations."""

from __future__ import annotations

from typing import Any

from unclip.nodes import NODE_CLASS_MAPPINGS

LANGUAGES = ("en", "zh")
NODE_IDS = tuple(NODE_CLASS_MAPPINGS)


def declared_inputs(node_id: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """All inputs of a node, required and optional: type and options by name."""
    groups = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().values()
    return {name: declared for group in groups for name, declared in group.items()}


def declared_outputs(node_id: str) -> dict[str, str]:
    """Type of each output of a node by name."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    return dict(zip(cls.RETURN_NAMES, cls.RETURN_TYPES, strict=True))


def is_chinese(text: str) -> bool:
    return any("一" <= character <= "鿿" for character in text)
