"""A workflow as one immutable graph of nodes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from .errors import name_node


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    ``inputs`` follows the API form: a list ``[node id, output index]`` is a link, ``{"__value__": [...]}``
    wraps a value that is itself a list, everything else is a constant.
    """

    class_type: str
    inputs: Mapping[str, Any]
    title: str = ""


@dataclass(frozen=True)
class NamedWidgets:
    """The widgets of a node of the UI form, running or not, and the names by which file names ask for them.

    Attributes:
        node_id: the id that it would be queued by.
        search_name: its property "Node name for S&R", which is its class unless a person changed it.
        title: what is written on it.
        values: of its widgets, as the file stores them.
    """

    node_id: str
    search_name: str
    title: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Workflow:
    """A graph of nodes by id.

    Attributes:
        nodes: the nodes that run.
        ui: the UI form that belongs to the graph, where there is one; saved pictures carry it.
        dropped: (node id, input) → why a link into that input is not in the graph.
        inactive: id → ``"muted"`` or ``"bypassed"`` for the nodes of the UI form that do not run.
        widgets: of all nodes of the UI form that this graph was made of; empty for a graph of another form.
    """

    nodes: Mapping[str, Node]
    ui: Mapping[str, Any] | None = None
    dropped: Mapping[tuple[str, str], str] = field(default_factory=dict)
    inactive: Mapping[str, str] = field(default_factory=dict)
    widgets: tuple[NamedWidgets, ...] = ()

    def __post_init__(self) -> None:
        frozen = {
            node_id: replace(node, inputs=MappingProxyType(dict(node.inputs)))
            for node_id, node in self.nodes.items()
        }
        object.__setattr__(self, "nodes", MappingProxyType(frozen))

    def with_inputs(self, node_id: str, **inputs: Any) -> Workflow:
        """The same graph with other values for some inputs of one node."""
        node = self.nodes[node_id]
        changed = replace(node, inputs={**node.inputs, **inputs})
        return replace(self, nodes={**self.nodes, node_id: changed})

    def to_api(self) -> dict[str, dict[str, Any]]:
        """The API form, as ComfyUI's ``POST /prompt`` takes it; a fresh copy."""
        return {
            node_id: {
                "class_type": node.class_type,
                "inputs": copy.deepcopy(dict(node.inputs)),
                "_meta": {"title": node.title or node.class_type},
            }
            for node_id, node in self.nodes.items()
        }

    def name(self, node_id: str) -> str:
        """How messages name a node of this graph."""
        node = self.nodes[node_id]
        return name_node(node_id, node.class_type, node.title)


def is_link(value: Any) -> bool:
    """True for ``[node id, output index]``."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )
