"""CLIP's byte-pair encoding, with the merge table that open_clip brings.

Source: openai/CLIP, `clip/simple_tokenizer.py`; open_clip's ``SimpleTokenizer``, whose ids these are. Its
file is read and nothing of the package imported, which takes seconds.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import ftfy
import regex
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

START, END = "<start_of_text>", "<end_of_text>"

_TABLE = "bpe_simple_vocab_16e6.txt.gz"
_WORD_END = "</w>"
# The two tokens themselves, contractions, words, digits one by one, and runs of other signs.
_WORDS = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)


class ClipTokenizer:
    """Captions → [B, L] int64 ids: start, caption, end, and padding of 0.

    Captions are cleaned (ftfy, HTML entities, white space) and lower-cased. Of long ones the end is cut off,
    so that the end token stays the last. It has the highest id, which is what pooling by argmax relies on.

    Args:
        merges: how many of the table's are used; CLIP takes 48,894.
        context_length: L.

    Attributes:
        vocabulary: token → id.
    """

    def __init__(self, merges: int, context_length: int) -> None:
        self.context_length = context_length
        self.vocabulary, self._pieces = _byte_pairs(merges)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(captions), self.context_length, dtype=torch.long)
        start, end = self.vocabulary[START], self.vocabulary[END]
        for row, caption in zip(ids, captions, strict=True):
            found = [start, *self.encode(caption)[: self.context_length - 2], end]
            row[: len(found)] = torch.tensor(found)
        return ids

    def encode(self, caption: str) -> list[int]:
        """The ids of a whole caption, without start and end."""
        clean = html.unescape(html.unescape(ftfy.fix_text(caption)))
        words = _WORDS.findall(" ".join(clean.split()).lower())
        return self._pieces.encode(words, is_pretokenized=True).ids


def byte_letters() -> list[str]:
    """A letter for each byte, in the order of their ids (openai/gpt-2, `src/encoder.py`): printable ones
    stand for themselves, letters from 256 on for the others."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@cache
def _byte_pairs(merges: int) -> tuple[Mapping[str, int], Tokenizer]:
    """Token → id, and what cuts words into them: a quarter of a second for CLIP's, for all its models."""
    pairs, letters = merge_table(merges), byte_letters()
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *(a + b for a, b in pairs)]
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, end_of_word_suffix=_WORD_END))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.add_special_tokens([START, END])
    return vocabulary, pieces


@cache
def merge_table(merges: int) -> list[tuple[str, str]]:
    """The first of CLIP's merges, most frequent first."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise ImportError(
            "CLIP's merge table is that of open_clip, which is missing: pip install open_clip_torch"
        )
    with gzip.open(Path(package.origin).with_name(_TABLE), "rt", encoding="utf-8") as table:
        lines = [line.split() for line in islice(table, 1, 1 + merges)]  # the first is a header
    return [(first, second) for first, second in lines]
