"""Make the thumbnails of the workflows that need downloaded models: a card of what they do and take.

Everything on a card is read from the workflow itself: the title from its note, the stages from its groups,
the models from its loaders. Workflows of the embedded mini have a picture that they made instead, and are
left alone. Run from the root of the repository: python tools/make_workflow_cards.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageColor, ImageDraw
from unclip.cli.workflow.builtin_nodes import NODE_DISPLAY_NAME_MAPPINGS as BUILTIN_NAMES
from unclip.core.pictures.lettering import fit
from unclip.nodes import NODE_DISPLAY_NAME_MAPPINGS

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
NAMES = {
    **BUILTIN_NAMES,
    **NODE_DISPLAY_NAME_MAPPINGS,
    "CheckpointLoaderSimple": "Load Checkpoint",
    "CLIPTextEncode": "CLIP Text Encode",
    "EmptyLatentImage": "Empty Latent",
    "VAEDecode": "VAE Decode",
}
# Widgets that name a model, and the folder of models where it lies.
FOLDERS = {"bundle": "unclip", "with_bundle": "unclip", "file": "unclip", "ckpt_name": "checkpoints"}
EMBEDDED, NOTHING = "mini", "none"

SIZE = 512
SCALE = 2  # drawn larger, then shrunk: smooth edges
COLUMNS = 3
MARGIN, GAP, PADDING = 24, 22, 8
BADGE = 64  # the template browser lays one over the upper left corner
TALLEST = 132  # of a box
PAPER, INK, SOFT, FAINT, LINE = (
    (28, 30, 36),
    (240, 240, 244),
    (214, 216, 224),
    (166, 170, 182),
    (120, 125, 138),
)

Box = tuple[float, float, float, float]


def needed_models(document: Mapping[str, Any]) -> list[str]:
    """Paths below ``models`` of what the loaders name, without what lies inside another of them."""
    found = []
    for node in document["nodes"]:
        values = list(node.get("widgets_values") or [])
        widgets = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        for name, value in zip(widgets, values, strict=False):  # loaders come before any seed's control
            if name in FOLDERS and str(value).split("/")[0] not in (EMBEDDED, NOTHING):
                found.append(f"{FOLDERS[name]}/{value}")
    unique = list(dict.fromkeys(found))
    return [
        path for path in unique if not any(str(parent) in unique for parent in PurePosixPath(path).parents)
    ]


def stages(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Title, colour and nodes of each group, as one reads: row by row, each from the left to the right."""
    for group in sorted(document["groups"], key=lambda group: (group["bounding"][1], group["bounding"][0])):
        left, top, width, height = group["bounding"]
        inside = [
            node
            for node in document["nodes"]
            if left <= node["pos"][0] < left + width and top <= node["pos"][1] < top + height
        ]
        names = [node.get("title") or NAMES.get(node["type"], node["type"]) for node in inside]
        said = group["title"].split(" · ")[-1]
        yield group["title"], group["color"], ", ".join(name for name in dict.fromkeys(names) if name != said)


def title_of(document: Mapping[str, Any]) -> str:
    """The heading of the note."""
    note = next(node for node in document["nodes"] if node["type"] == "MarkdownNote")
    return note["widgets_values"][0].splitlines()[0].removeprefix("# ")


def draw_card(document: Mapping[str, Any]) -> Image.Image:
    """A card of SIZE × SIZE pixels."""
    side = SIZE * SCALE
    card = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(card)
    inner = side - 2 * MARGIN * SCALE
    top = fit([title_of(document)], 30 * SCALE, inner, 2).write(draw, 0, (MARGIN * SCALE, BADGE * SCALE), INK)

    models = fit([f"models/{path}" for path in needed_models(document)], 14 * SCALE, inner, 1)
    heading = fit(["Needs"], 13 * SCALE, inner, 1)
    bottom = side - MARGIN * SCALE - models.line_height * len(models.lines)
    for index, lines in enumerate(models.lines):
        draw.text((MARGIN * SCALE, bottom + index * models.line_height), lines[0], INK, models.font)
    bottom -= heading.line_height
    heading.write(draw, 0, (MARGIN * SCALE, bottom), FAINT)

    boxes = list(stages(document))
    _draw_stages(draw, boxes, (MARGIN * SCALE, top + 16 * SCALE, side - MARGIN * SCALE, bottom - 16 * SCALE))
    return card.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _draw_stages(draw: ImageDraw.ImageDraw, found: Sequence[tuple[str, str, str]], area: Box) -> None:
    """Boxes in reading order with arrows between them, in the middle of an area."""
    left, top, right, bottom = area
    rows = -(-len(found) // COLUMNS)
    gap, pad = GAP * SCALE, PADDING * SCALE
    width = (right - left - gap * (COLUMNS - 1)) / COLUMNS
    height = min((bottom - top - gap * (rows - 1)) / rows, TALLEST * SCALE)
    top += (bottom - top - rows * height - (rows - 1) * gap) / 2
    inner = int(width - 2 * pad)
    titles = fit([title for title, _, _ in found], 17 * SCALE, inner, 2)
    spare = height - 2 * pad - max(map(titles.height, range(len(found))))
    size = (12 if rows > 2 else 14) * SCALE
    names = fit([names for _, _, names in found], size, inner, max(1, int(spare / (1.2 * size))))
    places = [
        (left + index % COLUMNS * (width + gap), top + index // COLUMNS * (height + gap))
        for index in range(len(found))
    ]
    for (x, y), after in pairwise(places):
        _arrow(draw, (x, y, x + width, y + height), after, gap)
    for index, ((x, y), (_, colour, _)) in enumerate(zip(places, found, strict=True)):
        edge = ImageColor.getrgb(colour)
        box = (x, y, x + width, y + height)
        draw.rounded_rectangle(box, 10 * SCALE, _mixed(edge, PAPER, 0.35), edge, 2 * SCALE)
        below = titles.write(draw, index, (x + pad, y + pad), INK)
        names.write(draw, index, (x + pad, below), SOFT)


def _arrow(draw: ImageDraw.ImageDraw, box: Box, after: tuple[float, float], gap: float) -> None:
    """From a box to the one to its right, or around to the first of the next row."""
    left, top, right, bottom = box
    middle, half, tip = (top + bottom) / 2, 5 * SCALE, 7 * SCALE
    stroke = {"fill": LINE, "width": 2 * SCALE}
    if after[1] == top:
        end = (after[0] - 2 * SCALE, middle)
        draw.line((right, middle, end[0] - tip, middle), **stroke)
        draw.polygon((end, (end[0] - tip, middle - half), (end[0] - tip, middle + half)), LINE)
        return
    between, x, inset = bottom + gap / 2, (left + right) / 2, after[0] + (right - left) / 2
    end = (inset, after[1] - 2 * SCALE)
    draw.line((x, bottom, x, between, inset, between, inset, end[1] - tip), joint="curve", **stroke)
    draw.polygon((end, (inset - half, end[1] - tip), (inset + half, end[1] - tip)), LINE)


def _mixed(a: Sequence[int], b: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(round(share * one + (1 - share) * other) for one, other in zip(a, b, strict=True))


def main() -> None:
    for path in sorted(WORKFLOWS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if needed_models(document):
            draw_card(document).save(path.with_suffix(".jpg"), quality=92, subsampling=0)


if __name__ == "__main__":
    main()
