"""``--set NODE.INPUT=VALUE``: change inputs of a workflow from the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import WorkflowError, name_node, nearest, one_of
from .graph import Workflow, is_link
from .json_text import JSONError, parse_json
from .specs import Catalog, InputSpec, NodeSpec, required_spec
from .widgets import with_widget_value

SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class Override:
    """One ``--set``: ``node`` is an id, a title, or a class name."""

    node: str
    input: str
    text: str


def parse_override(argument: str) -> Override:
    """``"3.steps=20"`` → node ``3``, input ``steps``, text ``20``. The node's name may hold dots."""
    left, equals, text = argument.partition("=")
    node, dot, name = left.rpartition(".")
    if not equals or not dot or not node.strip() or not name.strip():
        raise WorkflowError(
            f"--set {argument}: expected NODE.INPUT=VALUE, for example --set 3.steps=20 or "
            '--set "Decode.seed=7"; NODE is an id, a title, or a class name that occurs once.'
        )
    return Override(node.strip(), name.strip(), text)


def apply_overrides(workflow: Workflow, overrides: Sequence[Override], catalog: Catalog) -> Workflow:
    """The workflow with other values; its UI form, where it has one, shows them too.

    Raises:
        WorkflowError: no such node or input, or a name that several nodes have.
    """
    for each in overrides:
        override = _split_at_a_node(each, workflow)
        node_id = find_node(workflow, override.node)
        node = workflow.nodes[node_id]
        spec = required_spec(workflow.name(node_id), node.class_type, catalog).for_inputs(node.inputs)
        if override.input not in spec.inputs:
            raise WorkflowError(
                f"--set {override.node}.{override.input}: {workflow.name(node_id)} has no such input; it has "
                f"{one_of(spec.inputs)}.{nearest(override.input, spec.inputs)}"
            )
        try:
            value = _value(override.text, spec.inputs[override.input])
        except ValueError as error:
            raise WorkflowError(
                f"--set {override.node}.{override.input}: found {override.text!r}, expected {error}."
            ) from None
        workflow = set_input(workflow, node_id, spec, override.input, value)
    return workflow


def _split_at_a_node(override: Override, workflow: Workflow) -> Override:
    """Split at the dot that leaves the longest name that a node has.

    Titles have dots, and so have the inputs that a choice brings: ``3.format.codec``.
    """
    known = _names(workflow).union(workflow.inactive)
    node, name = override.node, override.input
    while node not in known:
        node, dot, more = node.rpartition(".")
        if not dot:
            return override
        name = f"{more}.{name}"
    return replace(override, node=node, input=name)


def _names(workflow: Workflow) -> set[str]:
    """What a node can be called by."""
    called = {*workflow.nodes}
    for node in workflow.nodes.values():
        called |= {node.title, node.class_type}
    return called - {""}


def set_input(workflow: Workflow, node_id: str, spec: NodeSpec, name: str, value: Any) -> Workflow:
    """The workflow with another value for one input, in the graph and in its UI form."""
    before = workflow.nodes[node_id].inputs.get(name)
    workflow = workflow.with_inputs(node_id, **{name: value})
    if workflow.ui is None:
        return workflow
    if _brought(spec.inputs[name], before) != _brought(spec.inputs[name], value):
        return replace(workflow, ui=None)  # the values of other widgets would stand in the places of these
    return replace(workflow, ui=_changed_ui(workflow.ui, node_id, spec, name, value))


def _brought(spec: InputSpec, choice: Any) -> tuple[InputSpec, ...]:
    return spec.brings.get(choice, ()) if isinstance(choice, str) else ()


def find_node(workflow: Workflow, name: str) -> str:
    """The id of the node that ``name`` means: an id, else a title, else a class name.

    Raises:
        WorkflowError: no node has the name, or several have.
    """
    if name in workflow.nodes:
        return name
    if name in workflow.inactive:
        raise WorkflowError(
            f"--set {name}: node {name} is {workflow.inactive[name]} and does not run; enable it."
        )
    for kind, attribute in (("title", "title"), ("class", "class_type")):
        found = [node_id for node_id, node in workflow.nodes.items() if getattr(node, attribute) == name]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(workflow.name(node_id) for node_id in found)
            raise WorkflowError(f"--set {name}: {len(found)} nodes have this {kind}: {names}. Use the id.")
    listed = ", ".join(name_node(i, node.class_type, node.title) for i, node in workflow.nodes.items())
    raise WorkflowError(
        f"--set {name}: the workflow has no such node; it has {listed}.{nearest(name, _names(workflow))}"
    )


def _value(text: str, spec: InputSpec) -> Any:
    """The value of an option: JSON where it parses, else the text itself.

    For a text input everything but a quoted JSON string is the text itself (``--set 3.text=1e3`` is no
    number), and for a choice, whichever of the two is among the choices.

    Raises:
        ValueError: ComfyUI would take the value for another one without a word; says what is expected.
    """
    if spec.type == "BOOLEAN" and (word := text.strip().strip('"').lower()) in SWITCH_WORDS:
        return SWITCH_WORDS[word]
    try:
        value = parse_json(text)
    except JSONError:
        value = text
    if spec.type == "STRING" and not isinstance(value, str):
        return text
    if spec.choices is not None and text in spec.choices and value not in spec.choices:
        return text
    if is_link(value):
        return value
    if spec.type == "BOOLEAN":
        raise ValueError("true or false (yes, no, on, off, 1 and 0 do as well)")
    if spec.type in ("INT", "FLOAT") and isinstance(value, bool):
        raise ValueError("a number")
    if spec.type == "INT" and isinstance(value, float) and not value.is_integer():
        raise ValueError("a whole number")
    if isinstance(value, list):
        return {"__value__": value}  # a bare list would stand for a link
    return value


def _changed_ui(
    ui: Mapping[str, Any], node_id: str, spec: NodeSpec, name: str, value: Any
) -> Mapping[str, Any] | None:
    """The UI form with the new value, so that a saved picture opens in ComfyUI with what made it.

    None where the form cannot show it (the node is missing, or the value is a link); then only the API form
    is saved.
    """
    changed = copy.deepcopy(dict(ui))
    places = [i for i, node in enumerate(changed.get("nodes") or []) if str(node.get("id")) == node_id]
    if not places or is_link(value) or not spec.inputs[name].is_widget:
        return None
    index = places[0]
    plain = value["__value__"] if isinstance(value, dict) and "__value__" in value else value
    changed["nodes"][index] = with_widget_value(changed["nodes"][index], spec, name, plain)
    for entry in changed["nodes"][index].get("inputs") or []:
        if entry.get("name") == name and entry.get("link") is not None:
            _remove_link(changed, entry["link"])
            entry["link"] = None
    return changed


def _remove_link(ui: dict[str, Any], link_id: Any) -> None:
    """Take a link out of the list of links and out of the output it came from."""

    def id_of(link: Any) -> Any:
        return link["id"] if isinstance(link, dict) else link[0]

    ui["links"] = [link for link in ui.get("links") or [] if link is not None and id_of(link) != link_id]
    for node in ui["nodes"]:
        for output in node.get("outputs") or []:
            if link_id in (output.get("links") or []):
                output["links"] = [other for other in output["links"] if other != link_id]
