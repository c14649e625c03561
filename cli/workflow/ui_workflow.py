"""Turn the UI form of a workflow into a graph, as ComfyUI's frontend does when it queues a prompt.

Follows the behaviour of ComfyUI_frontend: ``graphToPrompt``, ``ExecutableNodeDTO``, ``PrimitiveNode``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .errors import WorkflowError, name_node
from .graph import NamedWidgets, Node, Workflow
from .specs import Catalog, NodeSpec, unknown_node
from .subgraphs import BYPASSED, MUTED, Scope, flatten
from .ui_form import check_ui
from .ui_links import UiLink
from .widgets import spec_of_node, widget_values

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


class _At(NamedTuple):
    """An input on the way back to what feeds another; ``kind`` is the type that is asked for there."""

    node_id: str
    slot: int
    kind: Any


def graph_of_ui(document: Mapping[str, Any], catalog: Catalog, name: str = "workflow") -> Workflow:
    """The graph that ComfyUI's frontend would queue for a UI-form workflow.

    Muted nodes and notes are left out, bypassed nodes and reroutes are replaced by what feeds them, primitive
    nodes by their value, subgraph nodes by the nodes inside.

    A link that leads nowhere is dropped, as by ComfyUI's page: a widget then keeps its own value, and an
    optional input stays empty. ``name`` starts messages about the form of the document.

    Raises:
        WorkflowError: another form than ComfyUI writes; unknown node classes, missing definitions of
            subgraphs, loops; all of one kind at once, but for a subgraph that contains itself.
    """
    check_ui(document, name)
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
        return Workflow(
            nodes, ui=self.document, dropped=dropped, inactive=inactive, widgets=tuple(self._named_widgets())
        )

    def _named_widgets(self) -> Iterator[NamedWidgets]:
        """What file names may ask for, see `file_names`; those of unknown nodes have no names."""
        held: dict[str, dict[str, Any]] = {}
        for (owner, name), value in self.flat.values.items():
            held.setdefault(owner, {})[name] = value
        for node_id, node in self.nodes.items():
            class_type = node["type"]
            spec = self.catalog.spec(class_type)
            if class_type == PRIMITIVE:
                stored = _primitive_values(node)
                values = {"value": stored[0]} if stored else {}
            elif spec is not None and not spec.is_dynamic:
                values = widget_values(node, spec) | held.get(node_id, {})
            else:
                continue
            properties = node.get("properties") or {}
            name = properties.get("Node name for S&R") or class_type
            yield NamedWidgets(node_id, str(name), self._title(node), values)

    def _inputs(self, node_id: str, node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        spec = self._spec(node_id, node)
        held = self.flat.values
        values = {name: held.get((node_id, name), value) for name, value in widget_values(node, spec).items()}
        inputs = {name: _wrapped(value) for name, value in values.items()}
        dropped = {}
        for slot, entry in enumerate(node.get("inputs") or []):
            if entry.get("link") is None:
                continue
            origin = self._input(node_id, slot, entry.get("type"))
            if isinstance(origin, Value):
                inputs[entry["name"]] = _wrapped(origin.value)
            elif isinstance(origin, Dropped):
                # A widget keeps its own value then, as in the frontend.
                dropped[entry["name"]] = origin.reason
            else:
                inputs[entry["name"]] = origin
        return inputs, dropped

    def _spec(self, node_id: str, node: Mapping[str, Any]) -> NodeSpec:
        class_type = node["type"]
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
        spec = spec_of_node(node, spec)
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

    # What feeds an input: [node id, output index], a primitive's Value, or Dropped. A long way through
    # reroutes, bypassed nodes and subgraphs is walked step by step; `seen` finds loops among them, while
    # those of real nodes are found when the graph is validated.

    def _input(self, node_id: str, slot: int, kind: Any) -> list | Value | Dropped:
        at: _At | list | Value | Dropped = _At(node_id, slot, kind)
        seen: set[tuple[str, int]] = set()
        held: Value | None = None  # by the innermost subgraph node on the way
        while isinstance(at, _At):
            if (at.node_id, at.slot) in seen:
                name = self.nodes[at.node_id]["inputs"][at.slot]["name"]
                raise WorkflowError(
                    f"{self._where(at.node_id)}, input {name!r}: reroutes or bypassed nodes form a loop."
                )
            seen.add((at.node_id, at.slot))
            at, found = self._step(at)
            held = found or held
        return held if isinstance(at, Dropped) and held is not None else at

    def _step(self, at: _At) -> tuple[_At | list | Value | Dropped, Value | None]:
        """One link back from an input; and the value of a subgraph node's widget that it passes."""
        entry = (self.nodes[at.node_id].get("inputs") or [])[at.slot]
        link_id = entry.get("link")
        if link_id is None:
            return Dropped(
                f"nothing is connected to input {entry['name']!r} of {self._where(at.node_id)}"
            ), None
        scope = self.flat.scopes[at.node_id]
        link = scope.links.get(link_id)
        if link is None:
            return Dropped(f"its link {link_id} is not among the workflow's links"), None
        return self._origin(scope, link, at.kind)

    def _origin(
        self, scope: Scope, link: UiLink, kind: Any
    ) -> tuple[_At | list | Value | Dropped, Value | None]:
        """Where a link starts: at a node of its graph, or at an input of the subgraph node around it."""
        if scope.comes_from_outside(link):
            return self._outside(scope, link.source_slot)
        node_id = scope.node_id(link.source)
        if node_id not in self.nodes:
            return Dropped(f"its link comes from node {node_id}, which is not in the workflow"), None
        inside = self.flat.inside.get(node_id)
        if inside is not None and self.flat.modes[node_id] not in (MUTED, BYPASSED):
            ending = inside.link_to_output(link.source_slot)
            if ending is None:
                name = inside.slot_name("outputs", link.source_slot)
                reason = f"nothing inside is connected to output {name!r} of {self._where(node_id)}"
                return Dropped(reason), None
            return self._origin(inside, ending, kind)
        return self._output(node_id, link.source_slot, kind), None

    def _outside(self, scope: Scope, slot: int) -> tuple[_At | Dropped, Value | None]:
        """What feeds an input of a subgraph node, and what the widget that it was made of holds there."""
        name = scope.slot_name("inputs", slot)
        held = (scope.host, name)
        value = Value(self.flat.values[held]) if held in self.flat.values else None
        # Found by its name: a frontend that saves leaves out inputs that nothing is connected to.
        for index, entry in enumerate(self.nodes[scope.host].get("inputs") or []):
            if entry["name"] == name:
                return _At(scope.host, index, entry.get("type")), value
        return Dropped(f"nothing is connected to input {name!r} of {self._where(scope.host)}"), value

    def _output(self, node_id: str, slot: int, kind: Any) -> _At | list | Value | Dropped:
        node = self.nodes[node_id]
        mode, class_type = self.flat.modes[node_id], node["type"]
        if class_type == PRIMITIVE:
            stored = _primitive_values(node)
            return Value(stored[0]) if stored else Dropped(f"{self._where(node_id)} holds no value")
        if mode == MUTED:
            return Dropped(f"{self._where(node_id)} is muted")
        if class_type == REROUTE:
            if not node.get("inputs"):
                return Dropped(f"nothing is connected to {self._where(node_id)}")
            return _At(node_id, 0, kind)
        if class_type in NOTES:
            return Dropped(f"{self._where(node_id)} is a note")
        if mode == BYPASSED:
            through = _bypass_slot(node, slot, kind)
            if through is None:
                return Dropped(f"{self._where(node_id)} is bypassed and has no input of type {kind}")
            return _At(node_id, through, node["inputs"][through].get("type"))
        return [node_id, slot]


def _primitive_values(node: Mapping[str, Any]) -> list:
    """What a primitive node of the page stores, its value first."""
    stored = node.get("widgets_values") or []
    return list(stored.values()) if isinstance(stored, dict) else stored


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
