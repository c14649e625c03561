"""Run a graph on V1 node classes in this process, as ComfyUI would.

Follows ComfyUI's execution.py: lists travel between nodes (every output is a list of values), a node without
INPUT_IS_LIST runs once per list entry, OUTPUT_IS_LIST joins lists. Every node runs once; results are dropped
as soon as nothing needs them any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import WorkflowError
from .graph import Workflow, is_link
from .specs import ClassCatalog
from .validation import Plan, validate

NodeCallback = Callable[[str, str], None]
"""Told the id and the title of a node that is about to run."""


def run_workflow(
    workflow: Workflow,
    catalog: ClassCatalog,
    *,
    on_node: NodeCallback | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict[str, dict[str, list]]:
    """Check a graph and run it from its output nodes.

    Returns:
        What the nodes reported for display: node id → ``{"images": [{"filename", "subfolder", "type"}], …}``.

    Raises:
        WorkflowError: the graph has a problem, or a node failed; the message names the node.
    """
    return execute(validate(workflow, catalog, warn), catalog, on_node=on_node)


def execute(
    plan: Plan, catalog: ClassCatalog, *, on_node: NodeCallback | None = None
) -> dict[str, dict[str, list]]:
    """Run a checked graph; see `run_workflow`."""
    import torch

    workflow = plan.workflow
    waiting = Counter(link[0] for node_id in plan.order for link in _links(workflow, node_id))
    results: dict[str, list[list]] = {}
    shown: dict[str, dict[str, list]] = {}
    hidden = _HiddenInputs(workflow)
    with torch.inference_mode():
        for node_id in plan.order:
            node = workflow.nodes[node_id]
            if on_node is not None:
                on_node(node_id, node.title or node.class_type)
            inputs = _gather(workflow, node_id, catalog, results)
            inputs.update(hidden.of(node_id, catalog))
            try:
                outputs, report = run_node(catalog.classes[node.class_type], inputs)
            except Exception as error:
                raise WorkflowError(f"{workflow.name(node_id)}: {_reason(error)}") from error
            if report:
                shown[node_id] = report
            if waiting[node_id]:
                results[node_id] = outputs
            del inputs, outputs
            for link in _links(workflow, node_id):
                waiting[link[0]] -= 1
                if not waiting[link[0]]:
                    results.pop(link[0], None)
    return shown


def run_node(node_class: type, inputs: Mapping[str, list]) -> tuple[list[list], dict[str, list]]:
    """Run one V1 node.

    Args:
        node_class: the class; a fresh instance is made.
        inputs: input → list of values; lists that are shorter than the longest repeat their last value.

    Returns:
        One list of values per output, and the joined ``ui`` reports.
    """
    function = getattr(node_class(), node_class.FUNCTION)
    if getattr(node_class, "INPUT_IS_LIST", False):
        answers = [function(**inputs)]
    else:
        calls = max((len(values) for values in inputs.values()), default=1)
        answers = [
            function(**{name: values[min(call, len(values) - 1)] for name, values in inputs.items()})
            for call in range(calls)
        ]
    types = getattr(node_class, "RETURN_TYPES", ())
    rows = []
    report: dict[str, list] = {}
    for answer in answers:
        row = answer
        if isinstance(answer, Mapping):
            if "expand" in answer:
                raise ValueError("nodes that expand into other nodes run only in ComfyUI; use --server.")
            for key, values in (answer.get("ui") or {}).items():
                report.setdefault(key, []).extend(values)
            row = answer.get("result", ())
        row = () if row is None else row
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) < (len(types) if row else 0):
            raise TypeError(
                f"{node_class.__name__} returned {type(row).__name__}, expected {len(types)} values."
            )
        rows.append(row)
    is_list = getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(types)
    outputs = []
    for index in range(len(types)):
        values = [row[index] for row in rows if row]
        outputs.append([entry for value in values for entry in value] if is_list[index] else values)
    return outputs, report


def _links(workflow: Workflow, node_id: str) -> list[list]:
    return [value for value in workflow.nodes[node_id].inputs.values() if is_link(value)]


def _gather(
    workflow: Workflow, node_id: str, catalog: ClassCatalog, results: Mapping[str, list[list]]
) -> dict[str, list]:
    """Input → list of values, from constants and from the nodes that ran before."""
    node = workflow.nodes[node_id]
    takes_lists = getattr(catalog.classes[node.class_type], "INPUT_IS_LIST", False)
    gathered = {}
    for name in catalog.spec(node.class_type).for_inputs(node.inputs).inputs:
        if name not in node.inputs:
            continue
        value = node.inputs[name]
        if not is_link(value):
            gathered[name] = [value]
            continue
        source, slot = value
        gathered[name] = results[source][slot]
        if not gathered[name] and not takes_lists:
            raise WorkflowError(
                f"{workflow.name(node_id)}, input {name!r}: {workflow.name(source)} gave an empty list."
            )
    return gathered


class _HiddenInputs:
    """Values of the hidden inputs that a class may ask for."""

    def __init__(self, workflow: Workflow):
        self.prompt = workflow.to_api()
        self.pnginfo = None if workflow.ui is None else {"workflow": workflow.ui}

    def of(self, node_id: str, catalog: ClassCatalog) -> dict[str, list]:
        known = {"PROMPT": self.prompt, "EXTRA_PNGINFO": self.pnginfo, "UNIQUE_ID": node_id}
        hidden = catalog.spec(self.prompt[node_id]["class_type"]).hidden
        return {name: [known.get(_kind(declared))] for name, declared in hidden.items()}


def _kind(declared: Any) -> str:
    return str(declared[0] if isinstance(declared, (list, tuple)) else declared)


def _reason(error: Exception) -> str:
    """What to tell a person; an exception that was not written for people is named by its type."""
    if isinstance(error, (ValueError, OSError)) and str(error):
        return str(error)
    if "out of memory" in str(error).lower():
        return f"out of memory ({error}). Use a smaller batch or size, or a GPU with more memory."
    return f"{type(error).__name__}: {error}"
