"""Make docs/mini-prompts.png: eight prompts of trained concepts by the embedded mini, seed 0, at 256 px.

Run from the root of the repository: python tools/make_prompt_sheet.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from unclip.core.formats.native.checkpoints import load_bundle
from unclip.core.pictures.sheet import SheetStyle, contact_sheet, to_pil
from unclip.core.pipelines.generate import GenerateOptions, generate

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
PROMPTS = (
    "a flat panda",
    "a flat hamburger",
    "a grinning face, flat",
    "a flat penguin on a pale blue background",
    "a soft strawberry on a white background",
    "a simple hedgehog on a red background",
    "a flat rooster",
    "smiling face with sunglasses on a purple background",
)


def main() -> None:
    bundle = load_bundle(ROOT / "models" / "mini", dtype=torch.float32)
    pictures = generate(bundle, PROMPTS, seed=SEED, options=GenerateOptions(upsamplers=1))
    sheet = contact_sheet(to_pil(pictures), PROMPTS, columns=4, style=SheetStyle(font_size=16))
    sheet.save(ROOT / "docs" / "mini-prompts.png")


if __name__ == "__main__":
    main()
