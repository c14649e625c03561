"""Frozen dataclass configs to plain JSON and back, strictly."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar, Protocol, TypeVar


class Dataclass(Protocol):
    """Any dataclass, for type checkers."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)


def config_to_dict(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as a dict of JSON values; tuples become lists."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, found {type(config).__name__}")
    return {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}


def config_from_dict(cls: type[Config], data: Mapping[str, Any], where: str = "config") -> Config:
    """Build the dataclass ``cls`` from JSON (or TOML) values.

    Fields left out take their defaults, so that a file written before a field existed still loads.

    Args:
        cls: a dataclass; fields may be dataclasses, tuples, Literals, optional or plain values.
        data: values by field name.
        where: names the origin in error messages, for example the file.

    Raises:
        ValueError: an unknown or missing field, or a value of the wrong type; names the field.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected a table of {cls.__name__} fields, found {data!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(
            f"{where}: unknown {_plural('field', unknown)} {', '.join(unknown)} for {cls.__name__}; "
            f"it has {', '.join(fields)}. If they come from a newer version of unclip, update it"
        )
    missing = [
        name
        for name, field in fields.items()
        if name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {_plural('field', missing)} {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _from_json(hints[name], value, f"{where}.{name}") for name, value in data.items()})


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers from ``low`` to ``high``; without ``low`` itself where it is ``above``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        reached = value > self.low if self.above else value >= self.low
        return math.isfinite(value) and reached and value <= self.high

    def __str__(self) -> str:
        low = f"more than {self.low}" if self.above else f"at least {self.low}"
        if self.high == math.inf:
            return "a finite number" if self.low == -math.inf else low
        return f"{low} and at most {self.high}" if self.above else f"{self.low} to {self.high}"


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)


def require_ranges(config: Any, where: str = "", **ranges: Range) -> None:
    """Check numbers of a config; None passes, NaN and infinity never do.

    Args:
        where: of the config in its file, such as ``"loop"``; names the field in the error.
        ranges: by field.

    Raises:
        ValueError: names the first field that lies outside.
    """
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if value is not None and value not in allowed:
            raise ValueError(f"{where + '.' if where else ''}{name} is {value}, expected {allowed}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, NumPy's included; a switch is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_whole(**values: Any) -> None:
    """Raise a ValueError that names the first value that is no whole number."""
    for name, value in values.items():
        if not is_whole(value):
            raise ValueError(f"{name} is {value!r}; expected a whole number")


def require_at_least(least: int, why: str = "", /, **values: Any) -> None:
    """Raise a ValueError that names the first value that is no whole number, or below ``least``; it says why
    that is the least."""
    require_whole(**values)
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}{why and f', {why}'}")


def require_kind(kind: type | types.UnionType, what: str, /, **values: Any) -> None:
    """Raise a ValueError that names the first value that is of another kind.

    Args:
        what: the kind in words, and how one gets it.
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: found {type(value).__name__}, expected {what}")


def _plural(word: str, items: list[str]) -> str:
    return word if len(items) == 1 else word + "s"


def to_json(value: Any) -> Any:
    """A value of a config, or a default of one, as a JSON value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def _from_json(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _from_union([arg for arg in args if arg is not type(None)], value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where}: found {value!r}, expected one of {', '.join(map(repr, args))}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return config_from_dict(hint, value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    if origin in (list, dict) or hint is Any:
        return value
    return _scalar(hint, value, where)


def _from_union(hints: list[Any], value: Any, where: str) -> Any:
    errors = []
    for hint in hints:
        try:
            return _from_json(hint, value, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError("; or ".join(errors))


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: found {value!r}, expected a list")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ValueError(f"{where}: found {len(value)} values, expected {len(args)}")
    return tuple(
        _from_json(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(args, value, strict=True))
    )


def _scalar(hint: Any, value: Any, where: str) -> Any:
    # bool is an int in Python, but not in a config; an int is a fine float
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: found {value!r}, expected a value of type {hint.__name__}")
    return value
