"""What a decoder is told: it travels as one thing."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from ..config import require_kind
from ..embeddings.space import Embedding, TextFeatures
from .rows import CAPTIONS, EMBEDDINGS, PICTURES


@dataclass(frozen=True, eq=False)
class Conditions:
    """What pictures are to show, and what guidance leads away from.

    Each has 1 row or as many as the others, captions also fewer, see ``common_batch``; ``len`` is the largest
    number of rows, 1 where there are none.

    Attributes:
        embedding: [1 or B, D]; None for a decoder that takes none.
        text: captions, 1 or B, for decoders that read text.
        negative_embedding, negative_text: in place of the null embedding and the null caption.
        hint: pictures [1 or B, 3, H, W] in 0..1 that show where what is, for decoders that take them.

    Raises:
        ValueError: something of another kind.
    """

    embedding: Embedding | None = None
    text: TextFeatures | None = None
    negative_embedding: Embedding | None = None
    negative_text: TextFeatures | None = None
    hint: Tensor | None = None

    def __post_init__(self) -> None:
        embeddings = {"embedding": self.embedding, "negative_embedding": self.negative_embedding}
        require_kind(Embedding | None, EMBEDDINGS, **embeddings)
        require_kind(TextFeatures | None, CAPTIONS, text=self.text, negative_text=self.negative_text)
        require_kind(Tensor | None, PICTURES, hint=self.hint)

    def sizes(self) -> dict[str, int]:
        """Numbers of rows by name, of those that are there."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: len(rows) for name, rows in given.items() if rows is not None}

    def __len__(self) -> int:
        return max(self.sizes().values(), default=1)
