from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

import pytest
from unclip.core.config import config_from_dict, config_to_dict


@dataclass(frozen=True)
class Inner:
    width: int
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    levels: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    other: Inner | None = None
    flag: bool = False


EXAMPLE = Outer("x", "b", Inner(3, 0.5), (1, 2, 3), (0.25, 0.75), Inner(4), True)


def test_a_nested_config_survives_json() -> None:
    data = json.loads(json.dumps(config_to_dict(EXAMPLE)))
    assert data["levels"] == [1, 2, 3]
    assert config_from_dict(Outer, data) == EXAMPLE


def test_left_out_fields_take_their_defaults_and_whole_numbers_serve_as_floats() -> None:
    found = config_from_dict(Outer, {"name": "x", "kind": "a", "inner": {"width": 3, "scale": 2}})
    assert found == Outer("x", "a", Inner(3, 2.0))
    assert isinstance(found.inner.scale, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "file: unknown field nmae for Outer; it has name, kind"),
        ({"inner": {"width": 1, "depth": 2, "size": 3}}, "file.inner: unknown fields depth, size for Inner"),
        ({"inner": {}}, "file.inner: Inner needs field width"),
        ({"inner": 3}, "file.inner: expected a table of Inner fields, found 3"),
        ({"kind": "c"}, "file.kind: found 'c', expected one of 'a', 'b'"),
        ({"name": 3}, "file.name: found 3, expected a value of type str"),
        ({"inner": {"width": True}}, "file.inner.width: found True, expected a value of type int"),
        ({"flag": 1}, "file.flag: found 1, expected a value of type bool"),
        ({"levels": [1, "2"]}, "file.levels[1]: found '2', expected a value of type int"),
        ({"levels": 1}, "file.levels: found 1, expected a list"),
        ({"pair": [1]}, "file.pair: found 1 values, expected 2"),
        ({"other": {"wide": 1}}, "file.other: unknown field wide for Inner"),
    ],
)
def test_a_wrong_value_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        config_from_dict(Outer, {**config_to_dict(EXAMPLE), **change}, "file")


def test_only_instances_of_dataclasses_are_written() -> None:
    with pytest.raises(TypeError, match="expected a dataclass instance, found dict"):
        config_to_dict({"width": 3})
