"""What one text field says in several captions: a caption a line, and choices in braces."""

from __future__ import annotations

import random
import re

_CHOICE = re.compile(r"\{([^{}]*)\}")


def split_captions(text: str) -> list[str]:
    """The lines of a text that are not blank; one empty caption where all are."""
    return [line.strip() for line in text.splitlines() if line.strip()] or [""]


def choose_words(caption: str, seed: int) -> str:
    """A caption in which one of several is chosen wherever it says ``{red|green|blue}``, by the seed.

    Choices may be empty, and stand inside each other. A brace that no other closes stays as it is.
    """
    draw = random.Random(seed)

    def chosen(match: re.Match[str]) -> str:
        words = match[1].split("|")
        return words[draw.randrange(len(words))]

    while _CHOICE.search(caption):
        caption = _CHOICE.sub(chosen, caption)
    return caption
