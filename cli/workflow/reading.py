"""Read a workflow, in any form that ComfyUI writes, into one immutable graph.

Forms: the UI form (``nodes`` and ``links``, positional widget values), the API form
(``{id: {class_type, inputs}}``), the body of a ``POST /prompt``, and a picture or video whose texts
``prompt`` and ``workflow`` carry one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import WorkflowError, name_node, shown
from .graph import Node, Workflow
from .in_pictures import carried_texts
from .json_text import JSONError, parse_json
from .specs import Catalog
from .ui_form import check_ui
from .ui_workflow import graph_of_ui


def require_file(path: Path) -> None:
    """Raise FileNotFoundError unless ``path`` is a file."""
    if not path.is_file():
        raise FileNotFoundError(f"WORKFLOW: there is no file {str(path)!r}.")


def load_workflow(path: Path, catalog: Catalog) -> Workflow:
    """Read a workflow file: JSON in the UI or API form, or a picture or video that carries one.

    ``catalog`` names the widgets of a UI form's nodes; the API form does not ask it.

    Raises:
        FileNotFoundError: no such file.
        WorkflowError: the file holds no workflow, or one that cannot be turned into a graph.
    """
    require_file(path)
    data = path.read_bytes()
    texts = carried_texts(data, path.name)
    if texts is not None:
        return _from_carrier(texts, catalog, path.name)
    try:
        document = parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise WorkflowError(
            f"{path.name}: this is neither a workflow (.json) nor a picture or video that carries one (PNG, "
            "WebP, MP4 or WebM, as ComfyUI saves them)."
        ) from None
    except JSONError as error:
        raise WorkflowError(f"{path.name}: {error}.") from None
    return parse_workflow(document, catalog, name=path.name)


def parse_workflow(document: Any, catalog: Catalog, *, name: str = "workflow") -> Workflow:
    """Turn parsed JSON of either form into a graph; ``name`` starts messages about the whole document."""
    if isinstance(document, dict):
        if isinstance(document.get("nodes"), list):
            return graph_of_ui(document, catalog, name)
        prompt = document.get("prompt")
        if isinstance(prompt, dict) and prompt and "class_type" not in prompt:
            ui: Any = document  # pictures carry it on; nothing else depends on it
            for key in ("extra_data", "extra_pnginfo", "workflow"):
                ui = ui.get(key) if isinstance(ui, dict) else None
            return replace(_from_api(prompt, name), ui=ui if _is_ui(ui) else None)
        if document and any(isinstance(v, dict) and "class_type" in v for v in document.values()):
            return _from_api(document, name)
    raise WorkflowError(
        f"{name}: this JSON is not a workflow. Expected ComfyUI's UI form (with a list of nodes) or its API "
        f'form ({{"1": {{"class_type": …, "inputs": …}}}}); found {_kind(document)}.'
    )


def _kind(document: Any) -> str:
    if isinstance(document, dict):
        return f"an object with the keys {shown(list(document)[:6])}" if document else "an empty object"
    return f"a {type(document).__name__}"


def _from_api(document: Mapping[str, Any], name: str) -> Workflow:
    problems = []
    nodes = {}
    for node_id, entry in document.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("class_type"), str):
            problems.append(f"{name}: node {node_id} has no class_type; every entry of the API form has one.")
            continue
        inputs = entry.get("inputs", {})
        if not isinstance(inputs, dict):
            problems.append(
                f"{name_node(node_id, entry['class_type'])}: inputs must be an object, found {shown(inputs)}."
            )
            continue
        meta = entry.get("_meta")
        title = (meta.get("title") if isinstance(meta, dict) else None) or entry["class_type"]
        nodes[str(node_id)] = Node(entry["class_type"], inputs, str(title))
    if problems:
        raise WorkflowError(*problems)
    return Workflow(nodes)


def _from_carrier(texts: Mapping[str, str], catalog: Catalog, name: str) -> Workflow:
    """The graph in a picture's texts: ``prompt`` is what ran; ``workflow`` is kept as its UI form."""
    documents = {}
    problems = []
    for key, text in texts.items():
        try:
            documents[key] = parse_json(text)
        except JSONError as error:
            problems.append(f"its text {key!r}: {error}")
    ui = documents.get("workflow")
    if documents.get("prompt"):
        graph = parse_workflow(documents["prompt"], catalog, name=name)
        return replace(graph, ui=ui) if _is_ui(ui) else graph
    if ui:
        return parse_workflow(ui, catalog, name=name)
    if problems:
        raise WorkflowError(f"{name}: the workflow in it cannot be read: {'; '.join(problems)}.")
    raise WorkflowError(
        f"{name}: this file carries no workflow (no text named prompt or workflow). Pictures saved by "
        "ComfyUI or unclip do, unless a program that edited or uploaded them has removed it."
    )


def _is_ui(document: Any) -> bool:
    """True for a UI form that can be read, and so changed and saved with a picture."""
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), list):
        return False
    try:
        check_ui(document)
    except WorkflowError:
        return False
    return True
