"""The form of a UI-form workflow, checked once, so that what reads it meets no surprises.

Checked is what is read: ids, names and places of nodes, links and subgraphs. Whether the links lead somewhere
and the values suit their nodes is found later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .errors import WorkflowError, shown

MAX_PROBLEMS = 10  # in one message
LINK_FORM = "[id, source, slot, target, slot, type]"


class Field(NamedTuple):
    """What a field may hold, besides nothing at all.

    Attributes:
        kinds: Python types; a bool is no number here.
        words: those kinds, for people.
        check: looks into the value, if its kind is right.
        required: it must be there.
    """

    kinds: tuple[type, ...]
    words: str
    check: Callable[[Any, str, list[str]], None] | None = None
    required: bool = False


def check_ui(document: Mapping[str, Any], name: str = "workflow") -> None:
    """Raise a WorkflowError that names the places at which a UI-form document has another form."""
    problems: list[str] = []
    _table(document, {**GRAPH, "definitions": Field((dict,), "an object", _definitions)}, "", problems)
    if len(problems) > MAX_PROBLEMS:
        rest = len(problems) - MAX_PROBLEMS
        problems = [*problems[:MAX_PROBLEMS], f"and {rest} more of this kind: the file seems to be damaged."]
    if problems:
        raise WorkflowError(*(f"{name}: {problem}" for problem in problems))


def _table(table: Mapping[str, Any], fields: Mapping[str, Field], where: str, problems: list[str]) -> None:
    """Check the fields of an object; ``where`` starts the messages."""
    for name, field in fields.items():
        value = table.get(name)
        if value is None:
            if field.required:
                problems.append(f"{where}has no {name}; expected {field.words}.")
        elif not isinstance(value, field.kinds) or isinstance(value, bool):
            problems.append(f"{where}{name} is {shown(value)}; expected {field.words}.")
        elif field.check is not None:
            field.check(value, f"{where}{name}", problems)


def _each(fields: Mapping[str, Field]) -> Callable[[list, str, list[str]], None]:
    """A check of a list of objects with these fields."""

    def check(entries: list, where: str, problems: list[str]) -> None:
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                _table(entry, fields, f"{where}[{index}]: ", problems)
            else:
                problems.append(f"{where}[{index}] is {shown(entry)}; expected an object.")

    return check


def _nodes(nodes: list, where: str, problems: list[str]) -> None:
    found: set[str] = set()
    for index, node in enumerate(nodes):
        if not isinstance(node, dict):
            problems.append(f"{where}[{index}] is {shown(node)}; expected an object.")
            continue
        inside = where.removesuffix("nodes")
        _table(node, NODE, f"{inside}node {shown(node.get('id', f'[{index}]'), 20)}: ", problems)
        own = str(node.get("id"))
        if "id" in node and own in found:
            problems.append(
                f"{inside}two nodes have the id {shown(node['id'], 20)}. Open the workflow in ComfyUI and "
                "save it again."
            )
        found.add(own)


def _links(links: list, where: str, problems: list[str]) -> None:
    for index, link in enumerate(links):
        if link is None:  # what is left of a link that was removed; ComfyUI's page passes over it too
            continue
        if isinstance(link, list) and len(link) >= len(LINK):
            link = dict(zip(LINK, link, strict=False))
        if isinstance(link, dict):
            _table(link, LINK, f"{where}[{index}]: ", problems)
        else:
            problems.append(f"{where}: expected {LINK_FORM}, found {shown(link)}.")


def _proxies(entries: list, where: str, problems: list[str]) -> None:
    for index, entry in enumerate(entries):
        # Shorter entries are passed over by what reads them.
        if not isinstance(entry, list) or not all(map(isinstance, entry, (ID, str))):
            problems.append(f"{where}[{index}] is {shown(entry)}; expected [node id, widget].")


def _definitions(definitions: dict, where: str, problems: list[str]) -> None:
    _table(definitions, {"subgraphs": Field((list,), "a list", _each(SUBGRAPH))}, f"{where}.", problems)


ID = (int, str)
LIST = "a list"
SLOT = {"name": Field((str,), "a text", required=True), "link": Field(ID, "the id of a link")}
OUTPUT = {"links": Field((list,), LIST)}
PROPERTIES = {"proxyWidgets": Field((list,), LIST, _proxies)}
NODE = {
    "id": Field(ID, "a number or text", required=True),
    "type": Field((str,), "the name of a node class", required=True),
    "inputs": Field((list,), LIST, _each(SLOT)),
    "outputs": Field((list,), LIST, _each(OUTPUT)),
    "widgets_values": Field((list, dict), "a list or an object"),
    "properties": Field((dict,), "an object", lambda v, where, p: _table(v, PROPERTIES, f"{where}.", p)),
}
# In the order of the fields of a link that is a list.
LINK = {
    "id": Field(ID, "a number or text", required=True),
    "origin_id": Field(ID, "the id of a node", required=True),
    "origin_slot": Field((int,), "the number of an output", required=True),
    "target_id": Field(ID, "the id of a node", required=True),
    "target_slot": Field((int,), "the number of an input", required=True),
}
GRAPH = {"nodes": Field((list,), LIST, _nodes), "links": Field((list,), LIST, _links)}
SIDE = Field((dict,), "an object", lambda v, where, p: _table(v, {"id": Field(ID, "an id")}, f"{where}.", p))
SUBGRAPH = {
    **GRAPH,
    "id": Field((str,), "a text", required=True),
    "inputs": Field((list,), LIST, _each({})),
    "outputs": Field((list,), LIST, _each({})),
    "inputNode": SIDE,
    "outputNode": SIDE,
}
