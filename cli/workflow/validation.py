"""Check a graph against its node classes, as ComfyUI does before it runs a prompt, and convert its values.

Follows ``validate_prompt`` and ``validate_inputs`` of ComfyUI's execution.py. Stricter in one point: there,
outputs that fail are left out and the others run; here any problem is an error, and all are reported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .errors import WorkflowError, nearest, one_of, shown
from .graph import Node, Workflow, is_link
from .specs import ANY_TYPES, ClassCatalog, InputSpec, NodeSpec, unknown_node


@dataclass(frozen=True)
class Plan:
    """A checked graph: its inputs have their types, ``order`` runs every node after those that feed it."""

    workflow: Workflow
    order: tuple[str, ...]
    outputs: tuple[str, ...]


def validate(workflow: Workflow, catalog: ClassCatalog, warn: Callable[[str], None] | None = None) -> Plan:
    """Check a graph and order its nodes.

    Args:
        workflow: the graph. Every node's class must exist; inputs are checked if an output node needs them.
        catalog: the node classes.
        warn: told of inputs that no node class knows; they are ignored, as in ComfyUI.

    Raises:
        WorkflowError: with one problem per node and input: what was found, what was expected, what to do.
    """
    if not workflow.nodes:
        raise WorkflowError("the workflow holds no nodes that run.")
    unknown = [
        unknown_node(workflow.name(node_id), node.class_type, catalog)
        for node_id, node in workflow.nodes.items()
        if catalog.spec(node.class_type) is None
    ]
    if unknown:
        raise WorkflowError(*unknown)
    outputs = tuple(
        node_id for node_id, node in workflow.nodes.items() if catalog.spec(node.class_type).output_node
    )
    if not outputs:
        raise WorkflowError(
            "the workflow has no output node, so nothing would be made. Add one that saves or shows a "
            "result, such as SaveImage or PreviewImage, or unmute it."
        )
    order = topological_order(workflow, outputs)
    problems: list[str] = []
    nodes = dict(workflow.nodes)
    for node_id in order:
        checker = _NodeChecker(workflow, catalog, node_id, warn)
        node = nodes[node_id]
        nodes[node_id] = replace(node, inputs={**node.inputs, **checker.check()})
        problems.extend(checker.problems)
    if problems:
        raise WorkflowError(*problems)
    return Plan(replace(workflow, nodes=nodes), tuple(order), outputs)


def topological_order(workflow: Workflow, outputs: tuple[str, ...]) -> list[str]:
    """Nodes that the outputs need, each after those that feed it; depth first, so that little lives at once.

    Links to absent nodes are passed over (they are reported per input). Raises WorkflowError on a cycle.
    """
    order: list[str] = []
    done: set[str] = set()
    path: dict[str, None] = {}  # the nodes from an output to here, in order
    todo = [(node_id, False) for node_id in reversed(outputs)]
    while todo:
        node_id, is_return = todo.pop()
        if is_return:
            path.popitem()
            done.add(node_id)
            order.append(node_id)
            continue
        if node_id in done:
            continue
        if node_id in path:
            walked = list(path)
            loop = [*walked[walked.index(node_id) :], node_id]
            raise WorkflowError(
                "the workflow has a cycle: "
                + " ← ".join(workflow.name(name) for name in loop)
                + ". A node cannot feed itself; remove one of these links."
            )
        path[node_id] = None
        todo.append((node_id, True))
        sources = [value[0] for value in workflow.nodes[node_id].inputs.values() if is_link(value)]
        todo.extend((source, False) for source in reversed(sources) if source in workflow.nodes)
    return order


class _NodeChecker:
    """Checks the inputs of one node; collects problems and values of the right type."""

    def __init__(
        self, workflow: Workflow, catalog: ClassCatalog, node_id: str, warn: Callable[[str], None] | None
    ):
        self.workflow = workflow
        self.catalog = catalog
        self.node_id = node_id
        self.node: Node = workflow.nodes[node_id]
        self.spec: NodeSpec = catalog.spec(self.node.class_type).for_inputs(self.node.inputs)
        self.node_class = catalog.classes[self.node.class_type]
        self.warn = warn
        self.problems: list[str] = []
        self.linked_types: dict[str, Any] = {}

    def problem(self, name: str, text: str) -> None:
        self.problems.append(f"{self.workflow.name(self.node_id)}, input {name!r}: {text}")

    def check(self) -> dict[str, Any]:
        self._warn_of_unknown_inputs()
        own_checks = _parameters(getattr(self.node_class, "VALIDATE_INPUTS", None))
        values: dict[str, Any] = {}
        for name, spec in self.spec.inputs.items():
            if name not in self.node.inputs:
                if spec.required:
                    self._missing(name, spec)
                continue
            value = self.node.inputs[name]
            if isinstance(value, list):
                self._check_link(
                    name, spec, value, checks_type=own_checks is None or "input_types" not in own_checks
                )
                continue
            if isinstance(value, dict) and "__value__" in value:
                value = value["__value__"]
            if value is not None and not spec.takes_values:
                self.problem(name, f"found {shown(value)}; connect an output of type {spec.type} instead.")
                continue
            if spec.type == "BOOLEAN" and isinstance(value, str):
                self._warn_of_text(name, value)
            try:
                value = _converted(value, spec.type)
            except (TypeError, ValueError, OverflowError):
                self.problem(name, f"found {shown(value)}, expected {_expected(spec)}.")
                continue
            values[name] = value
            if own_checks is None or not (name in own_checks or "**" in own_checks):
                self._check_range(name, spec, value)
        if own_checks is not None and not self.problems:
            self._call_validate_inputs(own_checks, values)
        return values

    def _missing(self, name: str, spec: InputSpec) -> None:
        reason = self.workflow.dropped.get((self.node_id, name))
        if reason:
            self.problem(name, f"is required, but {reason}. Connect it to a node that runs.")
        elif spec.is_widget:
            self.problem(name, f"is required and has no value; expected {_expected(spec)}.")
        else:
            self.problem(
                name, f"is required and nothing is connected; connect an output of type {spec.type}."
            )

    def _warn_of_unknown_inputs(self) -> None:
        if self.warn is None:
            return
        for name in self.node.inputs:
            if name not in self.spec.inputs:
                hint = nearest(name, self.spec.inputs)
                self.warn(f"{self.workflow.name(self.node_id)} has no input {name!r}; it is ignored.{hint}")

    def _warn_of_text(self, name: str, text: str) -> None:
        if self.warn is not None:
            self.warn(
                f"{self.workflow.name(self.node_id)}, input {name!r}: the text {shown(text)} counts as "
                f"{str(bool(text)).lower()}, as in ComfyUI, where only the empty one is false; write true or "
                "false without quotes."
            )

    def _check_link(self, name: str, spec: InputSpec, link: list, *, checks_type: bool) -> None:
        if not is_link(link):
            hint = ""
            if len(link) == 2 and str(link[0]) in self.workflow.nodes:
                hint = f' Node ids are strings: ["{link[0]}", {link[1]}].'
            self.problem(
                name, f"a list stands for a link [node id, output index]; found {shown(link)}.{hint}"
            )
            return
        source_id, slot = link
        source = self.workflow.nodes.get(source_id)
        if source is None:
            self.problem(
                name,
                f"is linked to node {source_id}, which is not in the workflow. Connect it to another node.",
            )
            return
        source_spec = self.catalog.spec(source.class_type)
        outputs = source_spec.outputs
        if not 0 <= slot < len(outputs):
            has = f"has the outputs 0 to {len(outputs) - 1}" if outputs else "has no outputs"
            self.problem(name, f"is linked to output {slot} of {self.workflow.name(source_id)}, which {has}.")
            return
        self.linked_types[name] = outputs[slot]
        if checks_type and not types_match(outputs[slot], spec.declared):
            found = "a list of choices" if isinstance(outputs[slot], (list, tuple)) else str(outputs[slot])
            fitting = [
                f"{index} ({source_spec.output_names[index]})"
                for index, type_ in enumerate(outputs)
                if index < len(source_spec.output_names) and types_match(type_, spec.declared)
            ]
            hint = f" Its output {' or '.join(fitting)} fits." if fitting else ""
            self.problem(
                name,
                f"expected {spec.type}, but output {slot} of {self.workflow.name(source_id)} is {found}."
                + hint,
            )

    def _check_range(self, name: str, spec: InputSpec, value: Any) -> None:
        if spec.choices is not None:
            found = value if spec.options.get("multi_select") and isinstance(value, list) else [value]
            for entry in found:
                if entry not in spec.choices:
                    hint = nearest(entry, spec.choices) if isinstance(entry, str) else ""
                    self.problem(name, f"found {shown(entry)}, expected one of {one_of(spec.choices)}.{hint}")
            return
        if not isinstance(value, (int, float)):
            return
        low, high = spec.options.get("min", value), spec.options.get("max", value)
        if value < low or value > high or value != value:  # NaN passes every comparison
            self.problem(name, f"found {shown(value)}, expected {_expected(spec)}.")

    def _call_validate_inputs(self, parameters: set[str], values: dict[str, Any]) -> None:
        """The class's own check: it gets the constants it names, None for links, and their types if asked."""
        known = {name: values.get(name) for name in self.node.inputs if name in self.spec.inputs}
        arguments = {name: value for name, value in known.items() if name in parameters or "**" in parameters}
        if "input_types" in parameters:
            arguments["input_types"] = self.linked_types
        answer = self.node_class.VALIDATE_INPUTS(**arguments)
        if answer is not True:
            text = answer if isinstance(answer, str) else f"the node refuses {shown(arguments)}."
            name = next((name for name in arguments if name != "input_types"), None)
            if name is None:
                self.problems.append(f"{self.workflow.name(self.node_id)}: {text}")
            else:
                self.problem(name, text)


def types_match(output: Any, declared: Any) -> bool:
    """True where an output type may feed an input type; both may be lists ``"A,B"`` that overlap.

    The first comparison is written as in ComfyUI: wildcard types override ``__ne__``.
    """
    if not output != declared:  # noqa: SIM202
        return True
    if isinstance(output, (list, tuple)) and isinstance(declared, (list, tuple)):
        return list(output) == list(declared)
    if isinstance(output, (list, tuple)):
        return declared in ANY_TYPES or declared == "COMBO"
    if isinstance(declared, (list, tuple)):
        return output in ANY_TYPES
    outputs = {part.strip() for part in str(output).split(",")}
    inputs = {part.strip() for part in str(declared).split(",")}
    return bool(outputs & inputs or outputs & ANY_TYPES or inputs & ANY_TYPES)


def _converted(value: Any, kind: str) -> Any:
    """The constant in the type of its input, by Python's own conversions, as in ComfyUI."""
    if kind == "INT":
        return int(value)
    if kind == "FLOAT":
        return float(value)
    if kind == "STRING":
        return str(value)
    if kind == "BOOLEAN":
        return bool(value)
    return value


def _expected(spec: InputSpec) -> str:
    """``a whole number from 1 to 1000``."""
    if spec.choices is not None:
        return f"one of {one_of(spec.choices)}"
    words = {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false"}
    text = words.get(spec.type, f"a value of type {spec.type}")
    low, high = spec.options.get("min"), spec.options.get("max")
    if spec.type in ("INT", "FLOAT"):
        if low is not None and high is not None:
            return f"{text} from {low} to {high}"
        if low is not None:
            return f"{text} not below {low}"
        if high is not None:
            return f"{text} not above {high}"
    return text


def _parameters(function: Callable | None) -> set[str] | None:
    """Names of VALIDATE_INPUTS' parameters, with ``"**"`` if it takes any; None without such a function."""
    if function is None:
        return None
    parameters = inspect.signature(function).parameters.values()
    return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}
