"""Make docs/icon.png and docs/banner.png, by which the Comfy Registry shows this pack; mini paints them.

The registry takes an icon that is square and at most 400 pixels wide, and a banner of 21:9. Of every prompt's
pictures, the one is taken that CLIP finds most fitting. Run from the root of the repository:
python tools/make_icon.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from unclip.core.formats.native.checkpoints import load_bundle
from unclip.core.pictures.lettering import largest
from unclip.core.pictures.sheet import to_pil
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.generate import GenerateOptions, generate
from unclip.core.pipelines.score import clip_scores
from unclip.core.stages import Bundle

ROOT = Path(__file__).resolve().parent.parent
# The first four are on the icon.
PROMPTS = (
    "a flat panda",
    "a grinning face, flat",
    "a soft strawberry on a white background",
    "a flat hamburger",
    "a flat penguin",
    "a flat rooster",
)
SEEDS = 6

ICON = 400
BANNER = (1260, 540)
TITLE, SUBTITLE = "unCLIP", "DALL·E 2, stage by stage, as nodes"
PAPER, INK, FAINT = "#16181d", "#ffffff", "#aab2c0"


def paint(bundle: Bundle) -> list[Image.Image]:
    """The best picture of every prompt, 256 pixels wide."""
    options = GenerateOptions(upsamplers=1)
    best = []
    for prompt in PROMPTS:
        pictures = generate(bundle, [prompt] * SEEDS, seed=0, options=options)
        scores = clip_scores(bundle.clip, pictures, encode_text(bundle.clip, [prompt]))
        best += to_pil(pictures[scores.argmax()][None])
    return best


def mosaic(pictures: list[Image.Image], columns: int, side: int) -> Image.Image:
    """Square pictures edge to edge, each of ``side`` pixels."""
    rows = len(pictures) // columns
    sheet = Image.new("RGB", (columns * side, rows * side))
    for number, picture in enumerate(pictures):
        place = (number % columns * side, number // columns * side)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
    return sheet


def rounded(picture: Image.Image, radius: int) -> Image.Image:
    """The same with round, transparent corners."""
    finer = 4  # drawn larger, for a smooth edge
    mask = Image.new("L", (finer * picture.width, finer * picture.height))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, mask.width - 1, mask.height - 1), radius=finer * radius, fill=255
    )
    picture.putalpha(mask.resize(picture.size, Image.Resampling.LANCZOS))
    return picture


def banner(pictures: list[Image.Image]) -> Image.Image:
    """Name on the left, pictures in two rows on the right."""
    side = BANNER[1] // 2
    pictures = mosaic(pictures, len(pictures) // 2, side)
    sheet = Image.new("RGB", BANNER, PAPER)
    sheet.paste(pictures, (BANNER[0] - pictures.width, 0))
    draw, margin = ImageDraw.Draw(sheet), 40
    width = BANNER[0] - pictures.width - 2 * margin
    largest(TITLE, width, 150).write(draw, 0, (margin, 160), INK)
    largest(SUBTITLE, width, 90).write(draw, 0, (margin, 300), FAINT)
    return sheet


def main() -> None:
    pictures = paint(load_bundle(ROOT / "models" / "mini", dtype=torch.float32))
    icon = rounded(mosaic(pictures[:4], 2, ICON // 2), ICON // 8)
    icon.save(ROOT / "docs" / "icon.png", optimize=True)
    banner(pictures).save(ROOT / "docs" / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
