"""Names of files with values of the workflow in them: ``%date:yyyy-MM-dd%``, ``%KSampler.seed%``.

ComfyUI's page replaces them in the ``filename_prefix`` of its saving nodes when it queues a workflow; what
reads a UI form takes its place. Follows ``applyTextReplacements`` and ``formatDate`` of ComfyUI_frontend.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from .graph import NamedWidgets, Workflow, is_link

PREFIX = "filename_prefix"
SAVING_NODES = frozenset(
    {"SaveImage", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio", "SaveGLB", "SaveAnimatedPNG"}
    | {"CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"}
)
# Codes of the server, which knows the size and the number of a picture.
SERVERS_OWN = frozenset({"width", "height", "batch_num", "year", "month", "day", "hour", "minute", "second"})

_TOKEN = re.compile(r"%([^%]+)%")
_NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_DATE_PART = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")


def with_file_names(
    workflow: Workflow, *, now: datetime | None = None, warn: Callable[[str], None] | None = None
) -> Workflow:
    """The graph of a UI form with such names replaced; any other graph as it is.

    Args:
        now: the time that ``%date:…%`` shows.
        warn: told of names that nothing is known for; they stay.
    """
    if not workflow.widgets:
        return workflow
    now = now or datetime.now()
    named = workflow
    for node_id, node in workflow.nodes.items():
        prefix = node.inputs.get(PREFIX)
        if node.class_type not in SAVING_NODES or not isinstance(prefix, str):
            continue
        values = {token: _value(token, workflow, now) for token in _TOKEN.findall(prefix)}
        for token, value in values.items():
            if value is None and token not in SERVERS_OWN and warn is not None:
                warn(f"{workflow.name(node_id)}, input {PREFIX!r}: nothing is known as %{token}%.")
        name = _TOKEN.sub(lambda match, of=values: match[0] if of[match[1]] is None else of[match[1]], prefix)
        named = named.with_inputs(node_id, **{PREFIX: name})
    return named


def _value(token: str, workflow: Workflow, now: datetime) -> str | None:
    name, *rest = token.split(".")
    if len(rest) != 1:
        return _date(name.removeprefix("date:"), now) if name.startswith("date:") else None
    for attribute in ("search_name", "title"):
        nodes = [each for each in workflow.widgets if getattr(each, attribute) == name]
        if nodes:
            value = _held(nodes[0], rest[0], workflow)
            return None if value is None else _NOT_IN_NAMES.sub("_", _as_page(value))
    return None


def _held(node: NamedWidgets, widget: str, workflow: Workflow) -> Any:
    """What the widget of a node holds; an input that a link feeds still has its widget."""
    queued = workflow.nodes.get(node.node_id)
    value = None if queued is None else queued.inputs.get(widget)
    return node.values.get(widget) if value is None or is_link(value) else value


def _as_page(value: Any) -> str:
    """A value as JavaScript writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value)


def _date(form: str, now: datetime) -> str:
    """``yyyy-MM-dd hh:mm:ss``; a single letter leaves out the leading zero."""
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match) -> str:
        text = match[0]
        if text[0] == "y":
            return {2: f"{now.year:04}"[2:], 4: f"{now.year:04}"}.get(len(text), text)
        return f"{numbers[text[0]]:0{len(text)}}"

    return _DATE_PART.sub(part, form)
