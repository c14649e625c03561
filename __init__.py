"""unCLIP (DALL·E 2) for ComfyUI: every stage of the system as a node over one Python core.

ComfyUI reads the node tables below when it loads this folder. They, and the functions for Python, are
loaded on first access, so that a part of the package does not pay for the others.
"""

from typing import Any

# Help pages and the script that the browser loads; relative to this folder, as ComfyUI wants it.
WEB_DIRECTORY = "./web"

_NODE_TABLES = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")
_PYTHON_API = (
    "load_bundle",
    "load_lora",
    "encode_text",
    "generate_image",
    "vary",
    "interpolate",
    "inpaint",
    "save",
)

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "WEB_DIRECTORY",
    "encode_text",
    "generate_image",
    "inpaint",
    "interpolate",
    "load_bundle",
    "load_lora",
    "save",
    "vary",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # what is loaded on first access, too


def __getattr__(name: str) -> Any:
    if name in _NODE_TABLES:
        from . import nodes

        return getattr(nodes, name)
    if name in _PYTHON_API:
        from .core import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
