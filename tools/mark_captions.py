"""Make docs/everyday-captions.md: which everyday captions the training data know, and by which pictogram.

Run from the root of the repository: python tools/mark_captions.py SHARDS
SHARDS is a folder of `unclip data pictograms`. A caption is known where the name and the keywords of one
pictogram hold all that it names, each word by itself, in the singular or the plural. Colours do not count,
since training paints pictograms in other ones; nor do words that name nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from unclip.core.data.captions import COLOURS
from unclip.core.data.pictograms import Pictogram, read_shards
from unclip.core.training.stages import read_toml

ROOT = Path(__file__).resolve().parent.parent
CAPTIONS, MARKED = ROOT / "docs" / "everyday-captions.txt", ROOT / "docs" / "everyday-captions.md"
RECIPE = ROOT / "models" / "mini" / "recipe.toml"

NAME_NOTHING = {"a", "an", "the", "of", "with", "in", "on", "over", "and", "pair", "cup", "slice", "bunch"}


def words_of(text: str) -> set[str]:
    """The words of a text that name something, in the singular."""
    found = re.findall(r"[a-z]+", text.lower())
    return {_singular(word) for word in found if word not in NAME_NOTHING and word not in COLOURS}


def knows(pictogram: Pictogram, caption: str) -> bool:
    """Whether a pictogram has all that a caption names."""
    return words_of(caption) <= words_of(" ".join([pictogram.concept, *pictogram.keywords]))


def marked(captions: Iterable[str], pictograms: Sequence[Pictogram]) -> list[tuple[str, str]]:
    """Each caption with the concept of a pictogram that knows it, in the nearest words, or nothing."""
    rows = []
    for caption in captions:
        named = words_of(caption)
        known = {each.concept for each in pictograms if knows(each, caption)}
        nearest = sorted(known, key=lambda concept: (len(named ^ words_of(concept)), concept))
        rows.append((caption, nearest[0] if nearest else ""))
    return rows


def page(rows: Sequence[tuple[str, str]]) -> str:
    known = sum(bool(concept) for _, concept in rows)
    table = [f"| {caption} | {'known' if concept else 'unknown'} | {concept} |" for caption, concept in rows]
    return "\n".join(
        [
            "# Fifty everyday captions, and the data",
            "",
            f"Of these {len(rows)} captions, written without a look at the data, {known} are known to them:",
            "one pictogram's name and keywords hold all that the caption names but its colours. Made by",
            "`tools/mark_captions.py`.",
            "",
            "| caption | | pictogram |",
            "|---|---|---|",
            *table,
            "",
        ]
    )


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def main(shards: Path) -> None:
    styles = read_toml(RECIPE)["data"]["styles"]
    pictograms = [each for each in read_shards(shards) if each.style in styles and not each.held_out]
    MARKED.write_text(page(marked(CAPTIONS.read_text(encoding="utf-8").splitlines(), pictograms)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
