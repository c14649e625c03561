"""Read a workflow, in any form that ComfyUI writes, into one immutable graph.

Forms: the UI form (``nodes`` and ``links``, positional widget values), the API form
(``{id: {class_type, inputs}}``), the body of a ``POST /prompt``, and a PNG whose text chunks ``prompt`` and
``workflow`` carry one of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import WorkflowError, name_node, shown
from .graph import Node, Workflow
from .specs import Catalog
from .ui_workflow import graph_of_ui

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def require_file(path: Path) -> None:
    """Raise FileNotFoundError unless ``path`` is a file."""
    if not path.is_file():
        raise FileNotFoundError(f"WORKFLOW: there is no file {str(path)!r}.")


def load_workflow(path: Path, catalog: Catalog) -> Workflow:
    """Read a workflow file: JSON in the UI or API form, or a PNG that carries one.

    ``catalog`` names the widgets of a UI form's nodes; the API form does not ask it.

    Raises:
        FileNotFoundError: no such file.
        WorkflowError: the file holds no workflow, or one that cannot be turned into a graph.
    """
    require_file(path)
    data = path.read_bytes()
    if data.startswith(PNG_SIGNATURE):
        return _from_png(path, catalog)
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise WorkflowError(
            f"{path.name}: this is neither a workflow (.json) nor a PNG that carries one."
        ) from None
    except json.JSONDecodeError as error:
        raise WorkflowError(
            f"{path.name}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    return parse_workflow(document, catalog, name=path.name)


def parse_workflow(document: Any, catalog: Catalog, *, name: str = "workflow") -> Workflow:
    """Turn parsed JSON of either form into a graph; ``name`` starts messages about the whole document."""
    if isinstance(document, dict):
        if isinstance(document.get("nodes"), list):
            return graph_of_ui(document, catalog)
        prompt = document.get("prompt")
        if isinstance(prompt, dict) and prompt and "class_type" not in prompt:
            pnginfo = (document.get("extra_data") or {}).get("extra_pnginfo") or {}
            return replace(_from_api(prompt, name), ui=pnginfo.get("workflow"))
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
        title = (entry.get("_meta") or {}).get("title") or entry["class_type"]
        nodes[str(node_id)] = Node(entry["class_type"], inputs, str(title))
    if problems:
        raise WorkflowError(*problems)
    return Workflow(nodes)


def _from_png(path: Path, catalog: Catalog) -> Workflow:
    """The graph in a PNG's text chunks: ``prompt`` is what ran; ``workflow`` is kept as its UI form."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            chunks = {key: picture.info.get(key) for key in ("prompt", "workflow")}
    except (UnidentifiedImageError, OSError) as error:
        raise WorkflowError(f"{path.name}: this PNG cannot be read: {error}.") from None
    documents = {}
    for key, text in chunks.items():
        if isinstance(text, str):
            try:
                documents[key] = json.loads(text)
            except json.JSONDecodeError:
                continue
    ui = documents.get("workflow")
    if documents.get("prompt"):
        graph = parse_workflow(documents["prompt"], catalog, name=path.name)
        return replace(graph, ui=ui) if isinstance(ui, dict) else graph
    if ui:
        return parse_workflow(ui, catalog, name=path.name)
    raise WorkflowError(
        f"{path.name}: this PNG carries no workflow (no text chunk named prompt or workflow). Pictures saved "
        "by ComfyUI or unclip do, unless a program that edited or uploaded them has removed it."
    )
