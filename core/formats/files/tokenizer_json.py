"""The tokenizer of multilingual CLIP: SentencePiece's unigrams in a ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .unicode import without_lone_surrogates

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class MultilingualTokenizer:
    """Captions → [B, L] int64 ids: start token, caption, end token, padding; long captions are cut.

    Args:
        definition: the content of ``tokenizer.json``, kept to be saved with a model.
        where: the file, for messages.
        text_length: number L of ids.
        vocab_size: of the network.
        padding: id that pads, as the network knows it.

    Raises:
        ValueError: the package ``tokenizers`` is missing, it cannot read the definition, or its vocabulary is
            another one than the network's.
    """

    special_tokens = 2  # a start and an end token

    def __init__(
        self, definition: bytes, where: str, *, text_length: int, vocab_size: int, padding: int
    ) -> None:
        self.definition, self.context_length, self._padding = definition, text_length, padding
        self._tokenizer = _parse(definition, where)
        if self._tokenizer.get_vocab_size() > vocab_size:
            raise ValueError(
                f"{where}: has {self._tokenizer.get_vocab_size()} tokens, but the text encoder knows "
                f"{vocab_size}. They belong to different models: download the whole model again"
            )
        if self._tokenizer.token_to_id("<pad>") != padding:
            raise ValueError(
                f"{where}: its padding has the id {self._tokenizer.token_to_id('<pad>')}, expected {padding} "
                f"as XLM-RoBERTa has. Get the tokenizer that belongs to the text encoder"
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, caption: str) -> list[int]:
        """The ids of a whole caption, without start and end token."""
        return self._tokenizer.encode(without_lone_surrogates(caption), add_special_tokens=False).ids

    def __call__(self, captions: Sequence[str]) -> Tensor:
        start, end = (self._tokenizer.token_to_id(token) for token in ("<s>", "</s>"))
        ids = torch.full((len(captions), self.context_length), self._padding)
        for row, caption in enumerate(captions):
            kept = self.encode(caption)[: self.context_length - self.special_tokens]
            ids[row, : len(kept) + self.special_tokens] = torch.tensor([start, *kept, end])
        return ids


def _parse(definition: bytes, where: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer  # lazy: only this model needs it
    except ImportError as error:
        raise ValueError(
            f"{where}: needs the package tokenizers, which is not installed; run: pip install tokenizers"
        ) from error
    try:
        return Tokenizer.from_buffer(definition)
    except ValueError as error:
        raise ValueError(f"{where}: cannot be read as a tokenizer ({error}); get the file again") from error
    except Exception as error:  # the library raises bare Exceptions for what it cannot parse
        raise ValueError(f"{where}: cannot be read as a tokenizer ({error}); get the file again") from error
