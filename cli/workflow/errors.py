"""The error of workflows, and how messages name nodes and near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkflowError(ValueError):
    """Something in a workflow, or in what was asked of it, cannot be done.

    ``problems`` holds one sentence per problem; the message is all of them, one a line.
    """

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


def name_node(node_id: str, class_type: str, title: str = "") -> str:
    """``node 3 (UnCLIPDecode "Decode at 64 px")``: how every message names a node."""
    quoted = f' "{title}"' if title and title != class_type else ""
    return f"node {node_id} ({class_type}{quoted})"


def nearest(word: str, known: Iterable[str], limit: int = 3) -> str:
    """`` Did you mean "a" or "b"?`` with a leading blank, or an empty string where nothing comes near."""
    names = sorted({str(name) for name in known})
    by_lower = {name.lower(): name for name in reversed(names)}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=limit, cutoff=0.6)
    if not found:
        return ""
    return " Did you mean " + " or ".join(f'"{by_lower[name]}"' for name in found) + "?"


def one_of(known: Iterable[str], limit: int = 12) -> str:
    """``"a", "b", "c"``; a long list is cut and says how many more there are."""
    names = [f'"{name}"' for name in known]
    if not names:
        return "nothing"
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def shown(value: object, limit: int = 80) -> str:
    """``repr`` of a value, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
