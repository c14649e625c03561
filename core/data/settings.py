"""Which data to train on: the table ``[data]`` of a config."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from ..config import NOT_NEGATIVE, Range, require_ranges
from .augment import Augment
from .sources import shard_name

Source = Literal["pictograms", "folder", "webdataset", "embeddings"]
Crop = Literal["center", "random"]

_OF_PICTOGRAMS = ("shards", "styles", "groups", "white", "augment")
_OF_PIXELS = ("crop", "min_side", "max_aspect")
_OF_PICTURES = (*_OF_PIXELS, "held_out", "caption_field")


@dataclass(frozen=True)
class DataConfig:
    """Which pictures and captions to train on.

    Attributes:
        shards: folder of the shards that ``unclip data pictograms`` wrote; of pictograms alone, like the next
            four.
        styles, groups: the ones to use; empty for all that the shards hold.
        white: share of pictures on white, 0…0.9. A picture is harder to tell, and to draw, on colours.
        augment: how pictograms vary; None for one picture of each. Not for the crops of upsamplers.
        source: kind of data.
        path: where it is. A folder of pictures or of embeddings; webdataset shards as local paths, globs,
            brace ranges or URLs, several of them with ``::`` between.
        caption_field: column or key of the captions in metadata files; None for ``text`` or ``caption``.
        crop: which square is taken of a picture that is none.
        min_side: pictures with a smaller side are left out.
        max_aspect: pictures whose longer side is more than this many times the other are left out; None for
            none.
        held_out: share of the pictures that is kept for the validation loss, chosen by their names.
        workers: processes that read and decode; None for as many as there are cores for.
    """

    shards: str | None = None
    styles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    white: float = 0.45
    augment: Augment | None = None
    source: Source = "pictograms"
    path: str | None = None
    caption_field: str | None = None
    crop: Crop = "center"
    min_side: int = 0
    max_aspect: float | None = None
    held_out: float = 0.0
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.white <= 0.9:
            raise ValueError(f"data.white is {self.white}, expected 0 to 0.9: gradients take a tenth")
        require_ranges(
            self,
            "data",
            min_side=NOT_NEGATIVE,
            max_aspect=Range(1),
            held_out=Range(0, 0.9),
            workers=NOT_NEGATIVE,
        )
        own = self.source != "pictograms"
        if (self.path if own else self.shards or self.path) is None:
            field = "path" if own else "shards"
            raise ValueError(f"data.{field} is not set: where are the {self.source}?")
        if not own and self.shards is not None and self.path is not None:
            raise ValueError("data.shards and data.path are both set: one place of pictograms is expected")
        defaults = {name: field.default for name, field in self.__dataclass_fields__.items()}
        foreign = _OF_PICTOGRAMS if own else _OF_PICTURES
        if self.source == "embeddings":
            foreign += _OF_PIXELS
        for name in foreign:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"data.{name} is {getattr(self, name)!r}, which data.source {self.source!r} does not "
                    f"know: leave it out"
                )

    @property
    def pictograms(self) -> str:
        """The folder of the pictograms' shards.

        Raises:
            ValueError: the data are others.
        """
        if self.source != "pictograms":
            raise ValueError(f"data.source is {self.source!r}, but only pictograms serve here")
        return self.shards or self.path or ""


def chosen_by_name(key: str, share: float) -> bool:
    """Whether a picture belongs to a share of all that is chosen by a hash of the names in shards alone."""
    digest = hashlib.sha256(shard_name(key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < share
