"""The layout of a graph that has none: columns from the loaders on the left to what is saved on the right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .graph import Node, Workflow, is_link
from .specs import Catalog, InputSpec, NodeSpec, required_spec

WIDTH, COLUMN, GAP = 280, 340, 60  # of a node; from one column to the next; between two nodes, title included
SOCKET, WIDGET, EDGE = 20, 24, 30  # of a node's height
TEXT, PICTURE = 110, 260  # more of a node with a text of several lines, or with a picture below its widgets
UPLOADED = "image"  # what the upload button of a picture's node stores


def drawn(workflow: Workflow, catalog: Catalog) -> dict[str, Any]:
    """The UI form of a graph whose ids are numbers; seeds are fixed: the page runs the picture again."""
    nodes = {node_id: _drawn_node(node_id, node, catalog) for node_id, node in workflow.nodes.items()}
    links: list[list[Any]] = []
    for target, node in workflow.nodes.items():
        for name, value in node.inputs.items():
            if not is_link(value):
                continue
            source, output = value
            slot = next(i for i, entry in enumerate(nodes[target]["inputs"]) if entry["name"] == name)
            start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
            links.append([len(links) + 1, int(source), output, int(target), slot, start["type"]])
            start["links"].append(len(links))
            end["link"] = len(links)
    _place(workflow, nodes)
    return {
        "revision": 0,
        "last_node_id": max(map(int, nodes)),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _drawn_node(node_id: str, node: Node, catalog: Catalog) -> dict[str, Any]:
    spec = required_spec(node_id, node.class_type, catalog)
    # As ComfyUI's page does: what is wired first, then the widgets.
    sockets = [each for each in spec.inputs.values() if not each.is_widget]
    entries: list[dict[str, Any]] = [{"name": each.name, "type": each.type, "link": None} for each in sockets]
    for each in spec.widgets:
        entries.append({"name": each.name, "type": each.type, "widget": {"name": each.name}, "link": None})
    names = zip(spec.output_names, spec.outputs, strict=True)
    return {
        "id": int(node_id),
        "type": node.class_type,
        "pos": [0, 0],
        "size": [WIDTH, _height(spec)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": entries,
        "outputs": [{"name": name, "type": str(kind), "links": []} for name, kind in names],
        "properties": {"Node name for S&R": node.class_type},
        "widgets_values": _values(node, spec.widgets),
        **({"title": node.title} if node.title else {}),
    }


def _values(node: Node, widgets: tuple[InputSpec, ...]) -> list[Any]:
    """By position, with what the page stores behind a seed and behind the name of a picture."""
    values: list[Any] = []
    for each in widgets:
        value = node.inputs.get(each.name, each.default)
        values.append(each.default if is_link(value) else value)
        if each.has_control:
            values.append("fixed")
        if each.is_upload:
            values.append(UPLOADED)
    return values


def _height(spec: NodeSpec) -> int:
    rows = max(len(spec.inputs) - len(spec.widgets), len(spec.outputs))
    texts = sum(bool(each.options.get("multiline")) for each in spec.widgets)
    controls = sum(each.has_control for each in spec.widgets)
    return SOCKET * rows + WIDGET * (len(spec.widgets) + controls) + TEXT * texts + EDGE


def _place(workflow: Workflow, nodes: Mapping[str, dict[str, Any]]) -> None:
    """Behind all that feeds it; in a column one below the other."""
    depths: dict[str, int] = {}

    def depth(node_id: str) -> int:
        if node_id not in depths:
            fed = [value[0] for value in workflow.nodes[node_id].inputs.values() if is_link(value)]
            depths[node_id] = max((depth(each) + 1 for each in fed), default=0)
        return depths[node_id]

    bottoms: dict[int, int] = {}
    for order, node_id in enumerate(sorted(nodes, key=lambda each: (depth(each), int(each)))):
        node, column = nodes[node_id], depth(node_id)
        top = bottoms.get(column, 0)
        node["order"], node["pos"] = order, [COLUMN * column, top]
        shows = "IMAGE" in (entry["type"] for entry in [*node["outputs"], *node["inputs"]])
        bottoms[column] = top + node["size"][1] + GAP + (PICTURE if shows else 0)
