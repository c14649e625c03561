"""Pictures of a source part by part, each read once and made ready by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, Dataset

from .batches import Skipped
from .sources import PictureSource


@dataclass(frozen=True)
class Part:
    """Pictures that go together.

    Attributes:
        rows: what ``prepare`` has made of each that can be used.
        captions: theirs.
        keys: their names.
        skipped: names of those that cannot, and why.
    """

    rows: list[Any] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def read_parts(
    source: PictureSource, prepare: Callable[[bytes], Any], parts: Sequence[range], workers: int = 0
) -> Iterator[Part]:
    """The pictures of each part, in the order of the parts.

    Args:
        prepare: a picture's file → what is wanted of it; ValueError or OSError where it cannot be used.
        parts: which pictures go together.
        workers: processes that read and prepare; 0 for this one.
    """
    pictures = _Parts(source, prepare)
    if not workers:
        yield from (pictures[part] for part in parts)
        return
    yield from DataLoader(
        pictures,
        batch_size=None,
        sampler=parts,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_it_is,
    )


class _Parts(Dataset):
    def __init__(self, source: PictureSource, prepare: Callable[[bytes], Any]) -> None:
        self.source, self.prepare = source, prepare

    def __getitem__(self, indices: range) -> Part:
        part = Part()
        for index in indices:
            try:
                found = self.source.read(index)
                part.rows.append(self.prepare(found.picture))
                part.captions.append(found.caption)
                part.keys.append(self.source.key(index))
            except (ValueError, OSError, RecursionError) as error:
                part.skipped.append((self.source.key(index), str(error)))
        return part


def _as_it_is(part: Any) -> Any:
    return part
