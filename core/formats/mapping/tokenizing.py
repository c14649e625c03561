"""The tokenizer that a CLIP model's config asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...networks.clip import NO_TEXT_ENCODER, ClipConfig
from ..files.clip_tokenizer import ClipTokenizer


def build_tokenizer(config: ClipConfig) -> ClipTokenizer | Callable[[Sequence[str]], Tensor]:
    """The tokenizer of a config: captions → [B, L] int64 ids.

    Without a text encoder it raises a ValueError when it is called.
    """
    if config.text is None:
        return _refuse_captions
    return ClipTokenizer(config.tokenizer.merges, config.text.context_length)


def _refuse_captions(captions: Sequence[str]) -> Tensor:
    raise ValueError(NO_TEXT_ENCODER)
