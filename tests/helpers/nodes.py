"""Running nodes the way ComfyUI does."""

from __future__ import annotations

from typing import Any

from unclip.nodes import NODE_CLASS_MAPPINGS


def run(node_id: str, **given: Any) -> Any:
    """Run a node with the declared defaults for what is not given."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    defaults = {
        name: options["default"]
        for section in cls.INPUT_TYPES().values()
        for name, (_, options) in section.items()
        if "default" in options
    }
    return getattr(cls(), cls.FUNCTION)(**{**defaults, **given})
