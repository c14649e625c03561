"""unCLIP (DALL·E 2) for ComfyUI: every stage of the system as a node over one Python core.

ComfyUI reads the node tables below when it loads this folder; they are built on first access, so that
importing the package for its core or its command line does not pay for the nodes.
"""

from typing import Any

# Help pages and the script that the browser loads; relative to this folder, as ComfyUI wants it.
WEB_DIRECTORY = "./web"

_NODE_TABLES = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def __getattr__(name: str) -> Any:
    if name in _NODE_TABLES:
        from . import nodes

        return getattr(nodes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
