"""From the names of a file to those of a network: every tensor has one place, every place its tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...networks.without_memory import without_memory
from ..files.weight_source import WeightSource
from .assembling import Network, assemble, listed
from .number_types import computable, is_finite, require_number_type

Transform = Callable[..., Tensor]

_INDEX = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Rule:
    """A layer of the file, or several that are joined, becomes a layer of the network.

    Names are whole module or tensor names: the rule moves ``source`` itself and everything behind
    ``source.`` (``weight``, ``bias``). ``{n}`` stands for a number, the same one on both sides.

    Attributes:
        source: name in the file; several are given to ``transform`` in this order.
        target: name in the network; None where the network has no use for it.
        transform: from the file's tensors to the network's one, also of meta tensors, which tell its shape;
            None takes the single tensor as it is.
    """

    source: str | tuple[str, ...]
    target: str | None
    transform: Transform | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True)
class Place:
    """The tensors of a file that make one tensor of the network."""

    keys: tuple[str, ...]
    transform: Transform | None

    def make(self, found: Mapping[str, Tensor]) -> Tensor:
        parts = [found[key] for key in self.keys]
        return parts[0] if self.transform is None else self.transform(*parts)


def load_network(
    build: Callable[[], Network],
    source: WeightSource,
    rules: Sequence[Rule],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Network:
    """Build a network and fill it from a file of another layout, strictly (see :func:`assemble`).

    Args:
        build: constructor of the network.
        rules: where each tensor goes; exactly one rule must apply to each.
        dtype: to which floating-point tensors are converted; None keeps theirs.

    Raises:
        ValueError: tensors that are missing, left over, of a wrong shape, or not of finite real numbers;
            names file and key.
    """
    with without_memory():
        expected = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    places = match(source, rules, expected)
    shapes = _check_shapes(source, places, expected)

    def origin(name: str) -> tuple[Path, str]:
        keys = places[name].keys
        damaged = (key for key in keys if not is_finite(computable(source.tensor(key))))
        return source.origin(next(damaged, keys[0]))

    return assemble(build, shapes, _make(source, places), source.path, device, dtype, origin)


def read_tensors(
    source: WeightSource, rules: Sequence[Rule], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The tensors of these names and shapes of a network, from a file that holds a part of one.

    Raises:
        ValueError: see :func:`load_network`.
    """
    places = match(source, rules, expected)
    _check_shapes(source, places, expected)
    tensors = dict(_make(source, places))
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            path, key = source.origin(places[name].keys[0])
            raise ValueError(f"{path}: {key} holds NaN or infinite values. Get the file again")
    return tensors


def match(source: WeightSource, rules: Sequence[Rule], expected: Collection[str]) -> dict[str, Place]:
    """What makes each of the expected tensors of a network.

    Raises:
        ValueError: a tensor of the file that no rule moves to an expected place, or a place that stays empty.
    """
    table = _Table(rules)
    places: dict[str, Place] = {}
    used: set[str] = set()
    for key in source.shapes:
        found = table.find(key)
        if found is None:
            continue
        rule, values = found
        used.add(key)
        if rule.target is None:
            continue
        keys = tuple(_fill(pattern, values) for pattern in rule.sources)
        _require(source, [part for part in keys if part not in source.shapes])
        used.update(keys)
        places[_fill(rule.target, values)] = Place(keys, rule.transform)
    _require(source, [_origin(name, rules) for name in expected if name not in places])
    left = [key for key in source.shapes if key not in used]
    left += [key for name, place in places.items() if name not in expected for key in place.keys]
    if left:
        path, names = _there(source, left)
        raise ValueError(
            f"{path}: holds {listed(names)}, for which its layout has no place. It was changed, "
            f"or was made for another model: get the original file"
        )
    return places


class _Table:
    """The rules by the first of their names; names without numbers are looked up, the others are tried."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.plain: dict[str, Rule] = {}
        self.patterns: list[tuple[re.Pattern[str], Rule]] = []
        for rule in rules:
            first = rule.sources[0]
            if _INDEX.search(first):
                self.patterns.append((_compile(first), rule))
            elif self.plain.setdefault(first, rule) is not rule:
                raise RuntimeError(f"two rules move {first!r}")

    def find(self, key: str) -> tuple[Rule, dict[str, str]] | None:
        """The rule for a name, and what fills its patterns; ``rest`` is what follows the rule's own name."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            rule = self.plain.get(".".join(parts[:length]))
            if rule is not None:
                return rule, {"rest": "".join(f".{part}" for part in parts[length:])}
        for pattern, rule in self.patterns:
            if found := pattern.fullmatch(key):
                return rule, found.groupdict()
        return None


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern that takes the name itself and everything below it."""
    parts = _INDEX.split(pattern)  # text, name, text, name, …, text
    text = "".join(
        re.escape(part) if index % 2 == 0 else rf"(?P<{part}>\d+)" for index, part in enumerate(parts)
    )
    return re.compile(rf"{text}(?P<rest>(\..+)?)")


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return _INDEX.sub(lambda index: values[index[1]], pattern) + values["rest"]


def _origin(name: str, rules: Sequence[Rule]) -> str:
    """What the file should have called a tensor of the network."""
    for rule in rules:
        found = None if rule.target is None else _compile(rule.target).fullmatch(name)
        if found is not None:
            return _fill(rule.sources[0], found.groupdict())
    raise RuntimeError(f"no rule leads to {name!r}")


def _require(source: WeightSource, missing: Sequence[str]) -> None:
    if missing:
        path, names = _there(source, missing)
        raise ValueError(
            f"{path}: lacks {listed(names)}; found {len(source.shapes)} tensors. The file is incomplete: "
            f"download it again"
        )


def _there(source: WeightSource, names: Sequence[str]) -> tuple[Path, list[str]]:
    """The file of the first of these names, and what those of them that are its are called in it."""
    origins = [source.origin(name) for name in names]
    path = origins[0][0]
    return path, [name for file, name in origins if file == path]


def _check_shapes(
    source: WeightSource, places: Mapping[str, Place], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, place in places.items():
        try:
            own = {key: torch.empty(source.shapes[key], device="meta") for key in place.keys}
            shape: tuple[int, ...] | None = tuple(place.make(own).shape)
        except (RuntimeError, ValueError, IndexError):  # shapes that cannot be joined or rearranged
            shape = None
        if shape != expected[name]:
            path, names = _there(source, place.keys)
            found = zip(names, place.keys, strict=True)
            has = " and ".join(f"{own} {list(source.shapes[key])}" for own, key in found)
            becomes = "" if place.transform is None or shape is None else f", which makes {list(shape)}"
            raise ValueError(
                f"{path}: found the shape {has}{becomes}, expected {list(expected[name])} beside the "
                f"other tensors. Its parts belong to different models: get the original file"
            )
        shapes[name] = shape
    return shapes


def _make(source: WeightSource, places: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the network, in the order in which the file completes them."""
    targets = {key: name for name, place in places.items() for key in place.keys}
    waiting: dict[str, dict[str, Tensor]] = {}
    for key, tensor in source.tensors(targets):
        name = targets[key]
        require_number_type(*source.origin(key), tensor.dtype)
        found = waiting.setdefault(name, {})
        found[key] = computable(tensor)  # before anything is joined: float8 does not join with others
        if len(found) == len(places[name].keys):
            yield name, places[name].make(waiting.pop(name))


def count_layers(source: WeightSource, pattern: str) -> int:
    """How many numbers ``{n}`` stands for in the names of a file that match a pattern, from 0 on.

    Raises:
        ValueError: a number in between is missing.
    """
    compiled = _compile(pattern)
    found = {each["n"] for key in source.shapes if (each := compiled.fullmatch(key))}
    # As text, and no further than there are layers: a file may hold a number of any length.
    missing = next((n for n in range(len(found)) if str(n) not in found), None)
    if missing is not None:
        path, name = source.origin(_INDEX.sub(str(missing), pattern))
        raise ValueError(
            f"{path}: lacks {name}, though later ones are there. The file is incomplete: download it again"
        )
    return len(found)


def shape_of(source: WeightSource, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor that tells something about the network.

    Raises:
        ValueError: it is missing, or has another number of dimensions.
    """
    _require(source, [name] if name not in source.shapes else [])
    shape = source.shapes[name]
    if len(shape) != ndim:
        path, own = source.origin(name)
        raise ValueError(
            f"{path}: {own} has shape {list(shape)}, expected {ndim} dimensions. Get the original file"
        )
    return shape


def concatenated(*parts: Tensor) -> Tensor:
    """Rows of the parts below each other: queries, keys and values to one projection."""
    return torch.cat(parts)


def without_last_axis(tensor: Tensor) -> Tensor:
    """A 1×1 Conv1d's weight [O, I, 1] → a Linear's [O, I]; biases stay as they are."""
    return tensor.squeeze(-1) if tensor.ndim == 3 else tensor


def without_batch(tensor: Tensor) -> Tensor:
    """[1, …] → […]."""
    return tensor.squeeze(0)
