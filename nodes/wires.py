"""What arrives at a node's inputs, checked and converted before the node runs.

ComfyUI checks values that are typed in, and of wires their types alone: numbers out of range, choices that
are none and outputs that stay empty come through, and nodes that pass anything on (switches, reroutes)
bring objects of any type.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from . import sockets

Kinds = Mapping[str, tuple[type, ...]]
"""Parameters that take the core's objects, and which: NoneType is among them where none may arrive."""

LAST_SEED = 2**64 - 1
"""The end of a seed's range, behind which the first one follows."""

_ROUNDING = 1e-6  # by which nodes that reckon may pass the end of a range: 0.1 × 3 / 0.3

_LOOK = "look at the node that is wired to it"


def kinds_of(function: Callable[..., Any]) -> Kinds:
    """The parameters of a node's function that take the core's objects."""
    hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(function).items()}
    hints.pop("return", None)
    known = {*sockets.KINDS, type(None)}
    found = {name: tuple(each for each in hint if each in known) for name, hint in hints.items()}
    return {name: kinds for name, kinds in found.items() if {*kinds} & {*sockets.KINDS}}


def taken(node: type, kinds: Kinds, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a node is called with: its inputs in the types that it declares.

    An optional input at which nothing arrives is left out, as if nothing was connected.

    Args:
        node: a class with ``INPUT_TYPES``.
        kinds: of its function.
        given: values by the names of inputs.

    Raises:
        ValueError: for the first one that does not fit; names it, what was found and what was expected.
    """
    if not given:
        return {}
    declared, optional = _declared(node)
    values = {}
    for name, value in given.items():
        if value is None and name in optional:
            continue
        if name in kinds:
            _require_kind(name, value, kinds[name])
        elif name in declared:
            kind, options = declared[name]
            value = _value(name, value, kind, options)
        values[name] = value
    return values


@functools.cache
def _declared(node: Any) -> tuple[dict[str, tuple[Any, dict[str, Any]]], frozenset[str]]:
    """Inputs with widgets of which all is known beforehand, and the names of the optional ones.

    A node's ``VALIDATE_INPUTS`` names those that it checks itself: files, which come and go.
    """
    check = getattr(node, "VALIDATE_INPUTS", None)
    own = set() if check is None else set(inspect.signature(check).parameters)
    groups = node.INPUT_TYPES()
    inputs = {name: declared for group in groups.values() for name, declared in group.items()}
    widgets = {
        name: (kind, options)
        for name, (kind, options) in inputs.items()
        if name not in own and (isinstance(kind, list) or kind in ("INT", "FLOAT", "BOOLEAN", "STRING"))
    }
    return widgets, frozenset(groups.get("optional", {}))


def _require_kind(name: str, value: object, expected: tuple[type, ...]) -> None:
    if isinstance(value, expected):
        return
    wanted = " or ".join(sockets.KINDS[kind] for kind in expected if kind in sockets.KINDS)
    if value is None:
        raise ValueError(
            f"{name}: found nothing, expected {wanted}. The output that is wired to it is empty: its tooltip "
            f"says when. Connect another one."
        )
    raise ValueError(
        f"{name}: found {sockets.describe(value)}, expected {wanted}. Something else is wired to it, perhaps "
        f"through a node that lets everything pass, such as a switch; connect an output {wanted}."
    )


def _value(name: str, value: Any, kind: Any, options: Mapping[str, Any]) -> Any:
    """A value in the type of its input."""
    if isinstance(kind, list):
        if isinstance(value, str) and value in kind:
            return value
        expected = f"one of {', '.join(kind)}"
    elif kind == "STRING":
        if isinstance(value, (str, int, float)):
            return str(value)
        expected = "a text"
    elif kind == "BOOLEAN":
        if isinstance(value, (bool, int, float)) and value in (0, 1):
            return bool(value)
        expected = "true or false"
    else:
        whole, low, high = kind == "INT", options["min"], options["max"]
        number = _number(value, whole)
        if number is not None and not whole and low - _ROUNDING <= number <= high + _ROUNDING:
            return min(max(number, float(low)), float(high))
        if number is not None and whole and (low <= number <= high or high == LAST_SEED):
            return number
        expected = f"{'a whole number' if whole else 'a number'} from {low} to {high}"
    shown = sockets.describe(value) if not isinstance(value, (str, bool, int, float)) else f"{value!r:.60}"
    raise ValueError(f"{name}: found {shown}, expected {expected}; {_LOOK}")


def _number(value: Any, whole: bool) -> float | int | None:
    """Python's own number, of another library's or a text too; None for what is none, or no whole one."""
    try:
        if not whole:
            number = float(value)
            return number if math.isfinite(number) else None
        try:
            return operator.index(value)
        except TypeError:
            return int(value) if isinstance(value, str) or float(value).is_integer() else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
