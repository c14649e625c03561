"""Make locales/en: what the nodes say of themselves, in the files from which ComfyUI takes its translations.

Run from the root of the repository, after every change of a node's words: python tools/make_locales.py
The other languages are written by hand; tests/package/test_locales.py names what they lack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unclip.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

LOCALES = Path(__file__).resolve().parent.parent / "locales"


def node_definitions() -> dict[str, Any]:
    """The content of nodeDefs.json: names and tooltips of all nodes, their inputs and outputs."""
    return {
        node_id: {
            "display_name": NODE_DISPLAY_NAME_MAPPINGS[node_id],
            "description": cls.DESCRIPTION,
            "inputs": {
                name: {"name": name, "tooltip": options["tooltip"]}
                for group in cls.INPUT_TYPES().values()
                for name, (_, options) in group.items()
            },
            "outputs": {
                str(number): {"name": name, "tooltip": tooltip}
                for number, (name, tooltip) in enumerate(
                    zip(cls.RETURN_NAMES, cls.OUTPUT_TOOLTIPS, strict=True)
                )
            },
        }
        for node_id, cls in NODE_CLASS_MAPPINGS.items()
    }


def main_definitions() -> dict[str, Any]:
    """The content of main.json: the parts of the categories, each of which ComfyUI translates on its own."""
    parts = [part for cls in NODE_CLASS_MAPPINGS.values() for part in cls.CATEGORY.split("/")]
    return {"nodeCategories": {part: part for part in parts}}


def main() -> None:
    folder = LOCALES / "en"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("nodeDefs.json", node_definitions()), ("main.json", main_definitions())):
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
