"""Numbers that an option does not take: which option, what was found, what is expected.

By itself typer leaves out what was found, or half of the range, or all of it, each release something else.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

from .console import is_usage_error

_OF_NUMBERS = ("int_", "float_", "finite_", "less_than", "greater_than")


class NumberCommand(TyperCommand):
    """A command whose errors of numbers say all of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if is_usage_error(error):
                _say_what_was_found(error)
            raise


def expected_number(whole: bool, low: float | None, high: float | None) -> str:
    """``a number from 0 to 30``."""
    kind = "a whole number" if whole else "a number"
    if low is None:
        return kind if high is None else f"{kind} up to {_shown(high)}"
    return (
        f"{kind}, {_shown(low)} or more" if high is None else f"{kind} from {_shown(low)} to {_shown(high)}"
    )


def _shown(limit: float) -> str:
    """All digits of a whole number, as of the largest seed; no rounding's tail of another."""
    return str(limit) if isinstance(limit, int) else f"{limit:.15g}"


def _say_what_was_found(error: Any) -> None:
    param, problems = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    described = getattr(param, "type_descriptor", None)
    if problems is not None and described is not None:
        problem, limits = problems()[0], described.parameter_info  # pydantic's, of newer releases
        if problem["type"].startswith(_OF_NUMBERS):
            expected = expected_number("int" in str(described.annotation), limits.min, limits.max)
            error.message = f"found {problem['input']!r}, expected {expected}."
        return
    taken = getattr(param, "type", None)  # click's, of older ones
    name = getattr(taken, "name", "")
    if name.startswith(("integer", "float")):
        low, high = getattr(taken, "min", None), getattr(taken, "max", None)
        found = re.match(r"'?([^ ']*)'? is not ", error.message)
        if found is not None:
            error.message = (
                f"found {found[1]!r}, expected {expected_number(name.startswith('int'), low, high)}."
            )
