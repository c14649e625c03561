"""The positional widget values of a UI-form node: which value belongs to which input, and setting one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .specs import InputSpec, NodeSpec

CONTROL_VALUES = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
FILTER_VALUES = frozenset({""})  # the filter text under a combo's control
UPLOAD_VALUES = frozenset({"image"})  # what the upload button of LoadImage stores


def widget_values(node: Mapping[str, Any], spec: NodeSpec) -> dict[str, Any]:
    """Input name → value of every widget of a UI node; the declared default where nothing is stored."""
    return _values(node, spec_of_node(node, spec))


def spec_of_node(node: Mapping[str, Any], spec: NodeSpec) -> NodeSpec:
    """The spec of a UI node's class with the inputs that the node's choices bring, which may bring others."""
    return spec.with_choices(lambda known, name: _values(node, known).get(name))


def _values(node: Mapping[str, Any], spec: NodeSpec) -> dict[str, Any]:
    stored = node.get("widgets_values")
    if isinstance(stored, dict):
        return {widget.name: stored.get(widget.name, widget.default) for widget in spec.widgets}
    stored = stored or []
    places = widget_places(spec, stored)
    return {
        widget.name: stored[places[widget.name]] if places[widget.name] < len(stored) else widget.default
        for widget in spec.widgets
    }


def with_widget_value(node: Mapping[str, Any], spec: NodeSpec, name: str, value: Any) -> dict[str, Any]:
    """A copy of a UI node in which the widget ``name`` holds ``value``; widgets before it that hold nothing
    get their defaults."""
    stored = node.get("widgets_values")
    if isinstance(stored, dict):
        return {**node, "widgets_values": {**stored, name: value}}
    values = list(stored or [])
    spec = spec_of_node(node, spec)
    places = widget_places(spec, values)
    for widget in spec.widgets:
        if places[widget.name] >= len(values):
            values += [None] * (places[widget.name] - len(values)) + [widget.default]
        if widget.name == name:
            values[places[name]] = value
            break
    return {**node, "widgets_values": values}


def widget_places(spec: NodeSpec, values: Sequence[Any]) -> dict[str, int]:
    """Input name → index into a UI node's positional ``widgets_values``.

    The list is longer than the widgets: a control value ("fixed", …) follows a seed, a filter text follows
    the control of a combo, and an upload button stores a value after the required widgets. Files written by
    hand or by other frontends may lack them, so each is skipped only where it is really there: where the list
    is longer than the widgets, or where the next input could not hold such a value.
    """
    widgets = _stored_widgets(spec, len(values))
    spare = len(values) - len(widgets)
    places: dict[str, int] = {}
    at = 0
    for index, widget in enumerate(widgets):
        places[widget.name] = at
        at += 1
        following = widgets[index + 1] if index + 1 < len(widgets) else None
        for expected in _extras_after(widget, following, widgets):
            value = values[at] if at < len(values) else None
            if not isinstance(value, str) or value not in expected:
                break
            if spare <= 0 and _accepts(following, value):
                break
            at, spare = at + 1, spare - 1
    return places


def _extras_after(
    widget: InputSpec, following: InputSpec | None, widgets: Sequence[InputSpec]
) -> list[frozenset[str]]:
    """What the frontend's own widgets after ``widget`` may hold, in order."""
    extras = []
    if widget.has_control:
        extras.append(CONTROL_VALUES)
        if widget.type == "COMBO":
            extras.append(FILTER_VALUES)
    last_required = widget.required and (following is None or not following.required)
    if last_required and any(other.is_upload for other in widgets):
        extras.append(UPLOAD_VALUES)
    return extras


def _stored_widgets(spec: NodeSpec, count: int) -> list[InputSpec]:
    """The widgets with a stored value. Old frontends also stored one for inputs that are sockets only."""
    typed = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    forced = [
        s for s in spec.inputs.values() if s.is_widget or (s.options.get("forceInput") and s.type in typed)
    ]
    if len(forced) > len(spec.widgets) and count == len(forced) + sum(s.has_control for s in forced):
        return forced
    return list(spec.widgets)


def _accepts(spec: InputSpec | None, value: str) -> bool:
    """True where a stored control, filter or upload value could as well be the value of this input.

    A text that happens to read "fixed" is far less likely than a frontend that stored its control, as it
    always does, in a file from before the node got its latest inputs.
    """
    if spec is None:
        return False
    if spec.choices is not None:
        return value in spec.choices
    return value == "" and spec.type == "STRING"
