"""Turn the UI form of a workflow into a graph, as ComfyUI's frontend does when it queues a prompt.

Follows the behaviour of ComfyUI_frontend: ``graphToPrompt``, ``ExecutableNodeDTO``, ``PrimitiveNode``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import WorkflowError, name_node
from .graph import Node, Workflow
from .specs import Catalog, NodeSpec, unknown_node
from .subgraphs import BYPASSED, MUTED, Scope, flatten
from .ui_links import UiLink
from .widgets import widget_values

NOTES = frozenset({"Note", "MarkdownNote"})
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
VIRTUAL = NOTES | {REROUTE, PRIMITIVE}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Value(NamedTuple):
    """What an input resolves to when a PrimitiveNode feeds it, or a widget of a subgraph node."""

    value: Any


class Dropped(NamedTuple):
    """Why a link leads nowhere."""

    reason: str


def graph_of_ui(document: Mapping[str, Any], catalog: Catalog) -> Workflow:
    """The graph that ComfyUI's frontend would queue for a UI-form workflow.

    Muted nodes and notes are left out, bypassed nodes and reroutes are replaced by what feeds them, primitive
    nodes by their value, subgraph nodes by the nodes inside.

    Raises:
        WorkflowError: unknown node classes, missing definitions of subgraphs, broken links; all of them at
            once, but for a subgraph that contains itself.
    """
    return _Converter(document, catalog).graph()


class _Converter:
    def __init__(self, document: Mapping[str, Any], catalog: Catalog):
        self.document = document
        self.catalog = catalog
        self.flat = flatten(document)
        self.nodes = self.flat.nodes

    def graph(self) -> Workflow:
        nodes: dict[str, Node] = {}
        dropped: dict[tuple[str, str], str] = {}
        inactive: dict[str, str] = {}
        problems: list[str] = []
        for node_id, node in self.nodes.items():
            if node.get("type") in VIRTUAL:
                continue
            mode = self.flat.modes[node_id]
            if mode in (MUTED, BYPASSED):
                inactive[node_id] = "muted" if mode == MUTED else "bypassed"
                continue
            if node_id in self.flat.inside:
                continue
            try:
                inputs, without = self._inputs(node_id, node)
            except WorkflowError as error:
                problems.extend(error.problems)
                continue
            nodes[node_id] = Node(node["type"], inputs, self._title(node))
            dropped.update({(node_id, name): reason for name, reason in without.items()})
        if problems:
            raise WorkflowError(*problems)
        return Workflow(nodes, ui=self.document, dropped=dropped, inactive=inactive)

    def _inputs(self, node_id: str, node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        spec = self._spec(node_id, node)
        held = self.flat.values
        inputs = {
            name: _wrapped(held.get((node_id, name), value))
            for name, value in widget_values(node, spec).items()
        }
        dropped = {}
        for slot, entry in enumerate(node.get("inputs") or []):
            if entry.get("link") is None:
                continue
            origin = self._input(node_id, slot, entry.get("type"), set())
            if isinstance(origin, Value):
                inputs[entry["name"]] = _wrapped(origin.value)
            elif isinstance(origin, Dropped):
                # A widget keeps its own value then, as in the frontend.
                dropped[entry["name"]] = origin.reason
            else:
                inputs[entry["name"]] = origin
        return inputs, dropped

    def _spec(self, node_id: str, node: Mapping[str, Any]) -> NodeSpec:
        class_type = str(node.get("type"))
        where = name_node(node_id, class_type, self._title(node))
        if _UUID.fullmatch(class_type):
            raise WorkflowError(
                f'node {node_id}: "{self._title(node)}" is a subgraph that the workflow does not define (in '
                "definitions.subgraphs). Open the workflow in ComfyUI and save it again."
            )
        if class_type.startswith(("workflow/", "workflow>")):
            raise WorkflowError(
                f"{where}: group nodes are not supported in the UI form. Ungroup it in ComfyUI "
                "(right-click, Convert to nodes), or save the workflow with File → Export (API)."
            )
        spec = self.catalog.spec(class_type)
        if spec is None:
            raise WorkflowError(unknown_node(where, class_type, self.catalog))
        if spec.is_dynamic:
            raise WorkflowError(
                f"{where}: its inputs change with their values, which only ComfyUI's frontend can resolve. "
                "Save the workflow with File → Export (API)."
            )
        return spec

    def _title(self, node: Mapping[str, Any]) -> str:
        """The node's own title, else the display name of its class."""
        class_type = str(node.get("type"))
        if node.get("title") or class_type in VIRTUAL:
            return str(node.get("title") or class_type)
        spec = self.catalog.spec(class_type)
        return class_type if spec is None else spec.title

    def _where(self, node_id: str) -> str:
        node = self.nodes[node_id]
        if node_id in self.flat.inside:
            title = node.get("title") or self.flat.inside[node_id].graph.get("name") or ""
            return name_node(node_id, "subgraph", str(title))
        return name_node(node_id, str(node.get("type")), self._title(node))

    # What feeds an input: [node id, output index], a primitive's Value, or Dropped. `seen` guards against
    # loops among nodes that are not in the graph; loops of real nodes are found when the graph is validated.

    def _input(self, node_id: str, slot: int, kind: Any, seen: set) -> list | Value | Dropped:
        entry = (self.nodes[node_id].get("inputs") or [])[slot]
        name = entry.get("name", slot)
        link_id = entry.get("link")
        if link_id is None:
            return Dropped(f"nothing is connected to input {name!r} of {self._where(node_id)}")
        scope = self.flat.scopes[node_id]
        link = scope.links.get(link_id)
        if link is None:
            raise WorkflowError(
                f"{self._where(node_id)}, input {name!r}: link {link_id} is not among the workflow's links."
            )
        if not scope.comes_from_outside(link) and scope.node_id(link.source) not in self.nodes:
            raise WorkflowError(
                f"{self._where(node_id)}, input {name!r}: link {link_id} comes from node "
                f"{scope.node_id(link.source)}, which is not in the workflow."
            )
        if (node_id, slot) in seen:
            raise WorkflowError(
                f"{self._where(node_id)}, input {name!r}: reroutes or bypassed nodes form a loop."
            )
        return self._origin(scope, link, kind, seen | {(node_id, slot)})

    def _origin(self, scope: Scope, link: UiLink, kind: Any, seen: set) -> list | Value | Dropped:
        """Where a link starts: at a node of its graph, or at an input of the subgraph node around it."""
        if scope.comes_from_outside(link):
            return self._outside(scope, link.source_slot, seen)
        return self._output(scope.node_id(link.source), link.source_slot, kind, seen)

    def _outside(self, scope: Scope, slot: int, seen: set) -> list | Value | Dropped:
        """What feeds an input of a subgraph node: a link, else the value of the widget it was made of."""
        name = scope.slot_name("inputs", slot)
        # Found by its name: a frontend that saves leaves out inputs that nothing is connected to.
        entries = enumerate(self.nodes[scope.host].get("inputs") or [])
        at, kind = next(((i, e.get("type")) for i, e in entries if e.get("name") == name), (None, None))
        origin: list | Value | Dropped
        if at is None:
            origin = Dropped(f"nothing is connected to input {name!r} of {self._where(scope.host)}")
        else:
            origin = self._input(scope.host, at, kind, seen)
        if isinstance(origin, Dropped) and (scope.host, name) in self.flat.values:
            return Value(self.flat.values[scope.host, name])
        return origin

    def _output(self, node_id: str, slot: int, kind: Any, seen: set) -> list | Value | Dropped:
        node = self.nodes[node_id]
        mode, class_type = self.flat.modes[node_id], node.get("type")
        if class_type == PRIMITIVE:
            values = node.get("widgets_values") or []
            values = list(values.values()) if isinstance(values, dict) else values
            if not values:
                return Dropped(f"{self._where(node_id)} holds no value")
            return Value(values[0])
        if mode == MUTED:
            return Dropped(f"{self._where(node_id)} is muted")
        if class_type == REROUTE:
            if not node.get("inputs"):
                return Dropped(f"nothing is connected to {self._where(node_id)}")
            return self._input(node_id, 0, kind, seen)
        if class_type in NOTES:
            return Dropped(f"{self._where(node_id)} is a note")
        if mode == BYPASSED:
            through = _bypass_slot(node, slot, kind)
            if through is None:
                return Dropped(f"{self._where(node_id)} is bypassed and has no input of type {kind}")
            return self._input(node_id, through, (node["inputs"][through]).get("type"), seen)
        if node_id in self.flat.inside:
            inside = self.flat.inside[node_id]
            link = inside.link_to_output(slot)
            if link is None:
                name = inside.slot_name("outputs", slot)
                return Dropped(f"nothing inside is connected to output {name!r} of {self._where(node_id)}")
            return self._origin(inside, link, kind, seen)
        return [node_id, slot]


def _bypass_slot(node: Mapping[str, Any], slot: int, kind: Any) -> int | None:
    """The input that stands in for output ``slot`` of a bypassed node, for a target of type ``kind``.

    The input at the same place where its type fits, else the first of exactly the target's type, else the
    first that fits.
    """
    inputs = [entry.get("type") for entry in node.get("inputs") or []]
    outputs = [entry.get("type") for entry in node.get("outputs") or []]
    if not inputs:
        return None
    if _is_any(kind):
        return slot if slot < len(inputs) else 0
    output = outputs[slot] if slot < len(outputs) else kind

    def fits(type_: Any) -> bool:
        return _connects(type_, output) and _connects(type_, kind)

    if slot < len(inputs) and fits(inputs[slot]):
        return slot
    if kind in inputs:
        return inputs.index(kind)
    return next((index for index, type_ in enumerate(inputs) if fits(type_)), None)


def _is_any(type_: Any) -> bool:
    return type_ in ("*", "", 0, None)


def _connects(a: Any, b: Any) -> bool:
    if _is_any(a) or _is_any(b):
        return True
    return bool(set(str(a).lower().split(",")) & set(str(b).lower().split(",")))


def _wrapped(value: Any) -> Any:
    """A list is a link in the API form, so a value that is a list is wrapped."""
    return {"__value__": value} if isinstance(value, list) else value
