"""Texts as tokenizers in native code take them."""

from __future__ import annotations


def without_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that stands alone.

    JSON can say such halves (``"\\ud800"``) and Python keeps them, but they are no text in UTF-8; ftfy, which
    open_clip's tokenizer uses, replaces them in the same way.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
