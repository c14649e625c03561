"""Where pictures and their captions come from: one interface for folders and shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .tables import listed, separator_hint

CAPTION_SETTING = "data.caption_field (for unclip embed: --caption-field)"
NAMED = 5  # of things that are left out, in a warning

Captions = Literal["needed", "optional", "unread"]
"""What becomes of pictures without a caption: they are left out, or belong to a source with an empty one.
Where captions are unread, all pictures have an empty one, whatever lies beside them."""


@dataclass(frozen=True)
class Captioned:
    """The file of a picture, its caption, and the ending of its name (``"jpg"``)."""

    picture: bytes
    caption: str
    ending: str


class PictureSource(Protocol):
    """Pictures that can be read in any order, and from several processes at once.

    Attributes:
        groups: how many of them lie together in a file, in order; their sum is the length. Reading wanders
            through a few files at a time.
        missing: names of pictures that have no caption, which are not among those that can be read.
    """

    groups: tuple[int, ...]
    missing: tuple[str, ...]

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name of a picture, the same in a folder and in shards made of it."""

    def read(self, index: int) -> Captioned:
        """Raises OSError or ValueError where it cannot be read."""


def first_of(names: Sequence[str]) -> str:
    """The first of what is left out, for a warning."""
    return ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")


def shard_name(key: str) -> str:
    """The name of a picture in shards, where a dot in that of its file would begin the ending."""
    folder, slash, name = key.replace("\\", "/").rpartition("/")
    return f"{folder}{slash}{name.replace('.', '_')}"


def field_of(
    facts: dict[str, object], field: str | None, where: str, setting: str = CAPTION_SETTING
) -> object:
    """What stands in the field of the captions in a row of metadata.

    Args:
        setting: by which a person names that field; empty where there is none.

    Raises:
        ValueError: the row has no such field.
    """
    names = ("text", "caption") if field is None else (field,)
    found = [name for name in names if name in facts]
    if not found:
        advice = (
            f"name the field of the captions in {setting}"
            if setting
            else "give the field of the captions such a name"
        )
        raise ValueError(
            f"{where}: no {' or '.join(names)} among {listed(facts)}; {advice}{separator_hint(facts)}"
        )
    return facts[found[0]]


def text_of(value: object) -> str | None:
    """The caption that a field holds; None where it holds none."""
    return value.strip() if isinstance(value, str) and value.strip() else None


def caption_problem(value: object) -> str:
    """What is wrong with a field that holds no caption."""
    empty = value is None or isinstance(value, str)
    return "its caption is empty" if empty else f"its caption is {value!r}, expected text"
