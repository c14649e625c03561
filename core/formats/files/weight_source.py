"""Named tensors, wherever they lie: names, shapes and types at once, the tensors when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PARALLEL, _COMPILED = "module.", "_orig_mod."

Read = Callable[[Collection[str]], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True, eq=False)
class WeightSource:
    """The weights of a file, or of several that belong together.

    Attributes:
        path: the file, index or folder, for messages and for what lies beside it.
        shapes, dtypes: by name, in the order of the file.
        metadata: what the file says beside its tensors.
        read: yields the named tensors on the CPU; :meth:`tensors` calls it.
        parts: of several joined sources, each behind its prefix.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, Any]
    read: Read = field(repr=False)
    parts: Sequence[tuple[str, WeightSource]] = field(default=(), repr=False)

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, all by default, on the CPU in the order of the file.

        They are memory-mapped where the file allows it: bytes are read when they are first used.

        Raises:
            ValueError: a name that the file does not have.
        """
        wanted = set(self.shapes if names is None else names)
        unknown = sorted(wanted - set(self.shapes))
        if unknown:
            raise ValueError(
                f"{self.path}: has no tensor {unknown[0]!r}; it is incomplete or of another layout. Get the "
                f"original file"
            )
        return self.read(wanted)

    def tensor(self, name: str) -> Tensor:
        """A single tensor, see :meth:`tensors`."""
        return next(tensor for _, tensor in self.tensors([name]))

    def origin(self, name: str) -> tuple[Path, str]:
        """The file in which a tensor is or should be, and its name there: for messages."""
        start = name.partition(".")[0]
        for prefix, part in self.parts:
            own = name.removeprefix(prefix)
            if prefix and name.startswith(prefix):
                return part.origin(own)
            if not prefix and any(other.partition(".")[0] == start for other in part.shapes):
                return part.origin(own)
        return self.path, name


def source_of_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> WeightSource:
    """A source of tensors that are already there, memory-mapped or not."""

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.detach()) for name, tensor in tensors.items() if name in wanted)

    return WeightSource(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        dict(metadata or {}),
        read,
    )


def without_wrappers(source: WeightSource) -> WeightSource:
    """The same without what trainers put in front of all names, or torch.compile between their parts.

    ``DistributedDataParallel`` prefixes ``module.``, ``torch.compile`` ``_orig_mod.``, in any order.
    """
    names = {name: name.replace(_COMPILED, "") for name in source.shapes}
    while names and all(name.startswith(_PARALLEL) for name in names.values()):
        names = {name: short.removeprefix(_PARALLEL) for name, short in names.items()}
    if all(name == short for name, short in names.items()) or len(set(names.values())) < len(names):
        return source
    originals = {short: name for name, short in names.items()}

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        return ((names[name], tensor) for name, tensor in source.read({originals[each] for each in wanted}))

    return WeightSource(
        source.path,
        {names[name]: shape for name, shape in source.shapes.items()},
        {names[name]: dtype for name, dtype in source.dtypes.items()},
        source.metadata,
        read,
    )


def join_sources(path: Path, parts: Sequence[tuple[str, WeightSource]]) -> WeightSource:
    """Several sources as one, the names of each behind a prefix (which may be empty)."""

    def read(wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for prefix, part in parts:
            own = {name for name in part.shapes if prefix + name in wanted}
            yield from ((prefix + name, tensor) for name, tensor in part.read(own))

    return WeightSource(
        path,
        {prefix + name: shape for prefix, part in parts for name, shape in part.shapes.items()},
        {prefix + name: dtype for prefix, part in parts for name, dtype in part.dtypes.items()},
        {key: value for _, part in parts for key, value in part.metadata.items()},
        read,
        tuple(parts),
    )
