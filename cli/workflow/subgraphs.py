"""The nodes of a UI-form workflow with those of its subgraphs, under the ids that ComfyUI's frontend queues.

A subgraph node has the id of one of the workflow's definitions as its type; several nodes may show the same
definition. Node 3 of the definition that node 12 shows is node ``12:3``. Within a definition, two ids that no
node has (-10 and -20) stand for the subgraph node's own inputs and outputs.

Follows the behaviour of ComfyUI_frontend: ``SubgraphNode``, ``ExecutableNodeDTO``, ``proxyWidgets``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import WorkflowError
from .ui_links import UiLink, read_links

MUTED, BYPASSED = 2, 4
MAX_NODES = 20_000  # with those in subgraphs, each as often as it is shown; large workflows have hundreds
MAX_NESTED = 100  # subgraphs in each other

_INPUT_SIDE, _OUTPUT_SIDE = -10, -20
_OWN = "-1"  # in proxyWidgets: an input of the subgraph node itself
_PREFIX = re.compile(r"\s*(\d+)\s*:\s*(.+)", re.DOTALL)  # "7: seed": the widget seed of node 7 further inside


@dataclass(frozen=True)
class Scope:
    """One graph: the workflow's own, or a definition as one subgraph node shows it.

    Attributes:
        host: the id of that subgraph node; empty for the workflow's own graph.
        graph: the document or the definition.
        links: the graph's links by id; their node ids are those of the graph.
    """

    host: str
    graph: Mapping[str, Any]
    links: Mapping[Any, UiLink]

    def node_id(self, local: Any) -> str:
        """The id that a node of this graph is queued by."""
        return f"{self.host}:{local}" if self.host else str(local)

    def comes_from_outside(self, link: UiLink) -> bool:
        """True where the link starts at an input of the subgraph node."""
        return bool(self.host) and link.source == self._side("inputNode", _INPUT_SIDE)

    def slot_name(self, side: str, slot: int) -> str | None:
        """The name of a slot of the subgraph; ``side`` is ``"inputs"`` or ``"outputs"``."""
        slots = self.graph.get(side) or []
        return str(slots[slot].get("name")) if 0 <= slot < len(slots) else None

    def link_to_output(self, slot: int) -> UiLink | None:
        """The link within the subgraph that ends at an output of its node."""
        side = self._side("outputNode", _OUTPUT_SIDE)
        ending = (link for link in self.links.values() if (link.target, link.target_slot) == (side, slot))
        return next(ending, None)

    def promoted_inputs(self) -> list[str]:
        """The names of the subgraph's inputs that are linked to a widget inside, in order."""
        widgets = {
            entry.get("link")
            for node in self.graph.get("nodes") or []
            for entry in node.get("inputs") or []
            if entry.get("widget") and entry.get("link") is not None
        }
        slots = {
            link.source_slot
            for link_id, link in self.links.items()
            if link_id in widgets and self.comes_from_outside(link)
        }
        names = [self.slot_name("inputs", slot) for slot in sorted(slots)]
        return [name for name in names if name is not None]

    def _side(self, key: str, default: int) -> str:
        return str((self.graph.get(key) or {}).get("id", default))


@dataclass
class FlatGraph:
    """The nodes of a workflow and of its subgraphs.

    Attributes:
        nodes: by the id they are queued by, subgraph nodes among them.
        scopes: node id → the graph that the node lies in.
        inside: id of a subgraph node → the graph that it shows.
        modes: node id → its mode; within a muted or bypassed subgraph, that of the subgraph.
        values: (node id, name) → what a subgraph node around it holds for the widget, or for the input of a
            subgraph node, of that name. The outermost node's value is the one that counts.
    """

    nodes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    scopes: dict[str, Scope] = field(default_factory=dict)
    inside: dict[str, Scope] = field(default_factory=dict)
    modes: dict[str, Any] = field(default_factory=dict)
    values: dict[tuple[str, str], Any] = field(default_factory=dict)


def flatten(document: Mapping[str, Any]) -> FlatGraph:
    """The nodes of a UI-form document, with those of its subgraphs in their places.

    A node whose definition is missing is left as it is.

    Args:
        document: of the right form, see `check_ui`.

    Raises:
        WorkflowError: a subgraph contains itself, or there is no end of nodes.
    """
    listed = (document.get("definitions") or {}).get("subgraphs") or []
    definitions = {entry["id"]: entry for entry in listed if entry["id"]}
    flat = FlatGraph()
    _add(flat, Scope("", document, read_links(document.get("links") or [])), definitions, (), None)
    return flat


def _add(
    flat: FlatGraph,
    scope: Scope,
    definitions: Mapping[str, Mapping[str, Any]],
    around: tuple[str, ...],
    mode: int | None,
) -> None:
    """Add a graph's nodes; ``around`` are the definitions it lies in, ``mode`` theirs unless they run."""
    if len(around) > MAX_NESTED:
        raise WorkflowError(f"node {scope.host}: subgraphs lie more than {MAX_NESTED} deep in each other.")
    for node in scope.graph.get("nodes") or []:
        if len(flat.nodes) >= MAX_NODES:
            raise WorkflowError(
                f"the workflow has more than {MAX_NODES} nodes, with those in subgraphs; it cannot be run."
            )
        node_id = scope.node_id(node.get("id"))
        flat.nodes[node_id] = node
        flat.scopes[node_id] = scope
        flat.modes[node_id] = node.get("mode") if mode is None else mode
        kind = node.get("type")
        definition = definitions.get(kind)
        if definition is None:
            continue
        if kind in around:
            raise WorkflowError(_recursion(node_id, [*around[around.index(kind) :], kind], definitions))
        inside = Scope(node_id, definition, read_links(definition.get("links") or []))
        flat.inside[node_id] = inside
        for key, value in _host_values(node, inside).items():
            flat.values.setdefault(key, value)
        own = flat.modes[node_id]
        _add(flat, inside, definitions, (*around, kind), own if own in (MUTED, BYPASSED) else None)


def _host_values(node: Mapping[str, Any], inside: Scope) -> dict[tuple[str, str], Any]:
    """What a subgraph node holds: (node id, widget or input name) → value.

    Its ``widgets_values`` belong, by position, to the entries of its property ``proxyWidgets``, or to the
    promoted inputs in files of older and newer frontends, which lack it. None stands for nothing stored: the
    value is the inner node's.
    """
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return {(inside.host, name): value for name, value in stored.items() if value is not None}
    listed = (node.get("properties") or {}).get("proxyWidgets")
    entries = [entry for entry in listed if len(entry) >= 2] if isinstance(listed, list) else []
    entries = entries or [[_OWN, name] for name in inside.promoted_inputs()]
    values = {}
    for (local, name, *_), value in zip(entries, stored, strict=False):
        if value is None:
            continue
        node_id = inside.host if str(local) == _OWN else inside.node_id(local)
        while str(local) != _OWN and (further := _PREFIX.fullmatch(name)):
            node_id, name = f"{node_id}:{further[1]}", further[2]
        values[node_id, name] = value
    return values


def _recursion(node_id: str, chain: list[str], definitions: Mapping[str, Mapping[str, Any]]) -> str:
    names = [f'"{definitions[kind].get("name") or kind}"' for kind in chain]
    return (
        f"node {node_id}: the subgraph {names[-1]} contains itself ({' → '.join(names)}), so it has no end. "
        "Remove that node from the subgraph in ComfyUI."
    )
