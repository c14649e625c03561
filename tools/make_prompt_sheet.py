"""Make docs/mini-prompts.png and docs/mini-everyday.png: pictures of captions by the embedded mini, seed 0.

The first shows eight prompts at 256 px; the second the fifty captions of docs/everyday-captions.txt, which
were written before the training and without a look at its data. Run from the root of the repository:
python tools/make_prompt_sheet.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import unclip
from PIL import Image
from unclip.core.pictures.sheet import SheetStyle, contact_sheet, to_pil
from unclip.core.pipelines.generate import default_options, generate
from unclip.core.stages import Bundle

DOCS = Path(__file__).resolve().parent.parent / "docs"
SEED = 0
PROMPTS = (
    "a flat panda",
    "a flat hamburger",
    "a grinning face, flat",
    "a flat penguin on a pale blue background",
    "a soft strawberry on a white background",
    "a flat fire engine",
    "a rocket",
    "smiling face with sunglasses on a purple background",
)
EVERYDAY_SIDE = 128  # of fifty pictures on one page


def paint(bundle: Bundle, prompts: Sequence[str]) -> list[Image.Image]:
    """One picture of each prompt, 256 pixels wide."""
    options = replace(default_options(bundle), upsamplers=1)
    return to_pil(generate(bundle, prompts, seed=SEED, options=options))


def main() -> None:
    bundle = unclip.load_bundle(DOCS.parent / "models" / "mini", dtype=torch.float32)
    sheet = contact_sheet(paint(bundle, PROMPTS), PROMPTS, columns=4, style=SheetStyle(font_size=16))
    sheet.save(DOCS / "mini-prompts.png")
    captions = (DOCS / "everyday-captions.txt").read_text(encoding="utf-8").splitlines()
    style = SheetStyle(cell_size=EVERYDAY_SIDE, font_size=11)
    contact_sheet(paint(bundle, captions), captions, columns=10, style=style).save(DOCS / "mini-everyday.png")


if __name__ == "__main__":
    main()
