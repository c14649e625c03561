"""A graph of the command line in the layout of a workflow file, as ComfyUI's page opens it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .graph import Workflow
from .specs import Catalog

_RUNS, _BYPASSED = 0, 4  # LiteGraph's modes
_OFF = " (off)"  # in the title of a group whose nodes are bypassed
_NOTES = "MarkdownNote"


def laid_out(document: Mapping[str, Any], workflow: Workflow, catalog: Catalog) -> dict[str, Any]:
    """A workflow in the UI form with the values of a graph whose nodes have the same ids.

    Nodes that the graph lacks are bypassed. Seeds are fixed: the page runs the picture again. Notes are
    left out, because they speak of the values that the file has.

    Args:
        document: the UI form.
        catalog: knows the classes of the graph.
    """
    made = copy.deepcopy(dict(document))
    made["nodes"] = [node for node in made["nodes"] if node["type"] != _NOTES]
    for node in made["nodes"]:
        running = workflow.nodes.get(str(node["id"]))
        node["mode"] = _BYPASSED if running is None else _RUNS
        spec = None if running is None else catalog.spec(running.class_type)
        if running is None or spec is None:
            continue
        values: list[Any] = []
        for widget in spec.widgets:
            values.append(running.inputs.get(widget.name, widget.default))
            if widget.has_control:
                values.append("fixed")
        node["widgets_values"] = values
        if running.title:
            node["title"] = running.title
    for group in made.get("groups", []):
        inside = [node for node in made["nodes"] if _is_inside(node, group)]
        off = bool(inside) and all(node["mode"] == _BYPASSED for node in inside)
        group["title"] = group["title"].removesuffix(_OFF) + (_OFF if off else "")
    return made


def _is_inside(node: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    x, y, width, height = group["bounding"]
    return x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height
