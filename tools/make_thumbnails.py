"""Make workflows/*.jpg: each workflow's own picture, small, as the template browser of ComfyUI shows it.

Run from the root of the repository: python tools/make_thumbnails.py [NAME …]
Without names, for all workflows that need no other model than the embedded one.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from unclip.cli.workflow.builtin_nodes import Folders
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import load_workflow
from unclip.core.pictures.sheet import contact_sheet
from unclip.nodes.catalogue import EMBEDDED_BUNDLE

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
LONGER, SHORTER = 512, 256  # pixels that the sides come down to, whichever they reach first
QUALITY = 85
BADGE = 0.12  # of the side of a card: so much of it, from above, the template browser's badge needs


def needs_only_the_embedded_bundle(document: dict[str, Any]) -> bool:
    """Whether a workflow in the UI form loads nothing but models of the embedded bundle."""
    loaders = [node for node in document["nodes"] if "Load" in node["type"]]
    return bool(loaders) and all(
        node["type"].startswith("UnCLIPLoad")
        and str(node["widgets_values"][0]).split("/")[0] == EMBEDDED_BUNDLE
        for node in loaders
    )


def saved_pictures(workflow: Path) -> list[Image.Image]:
    """Run a workflow here: what its SaveImage nodes write, or its PreviewImage nodes where it has none."""
    catalog = local_catalog()
    with tempfile.TemporaryDirectory() as made:
        folders = Folders(Path(made), Path(made, "output"), Path(made, "temp"))
        run_here(load_workflow(workflow, catalog), catalog, folders, quiet=True)
        pictures = [path for path in folders.written if path.suffix == ".png"]
        saved = [path for path in pictures if path.is_relative_to(folders.output)]
        return [Image.open(path).convert("RGB") for path in saved or pictures]


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """One picture, or several as a page; made smaller where it is large. Pages have room for the badge."""
    picture = pictures[0] if len(pictures) == 1 else contact_sheet(pictures)
    scale = max(LONGER / max(picture.size), SHORTER / min(picture.size))
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    is_page = len(pictures) > 1 or picture.width != picture.height
    return with_room(picture) if is_page else picture


def with_room(page: Image.Image) -> Image.Image:
    """A page with a band of its paper above, as high as the badge needs on a square card."""
    width, height = page.size
    band = math.ceil(min(height - (1 - 2 * BADGE) * width, height * BADGE / (1 - BADGE)))
    if band <= 0:
        return page  # a wide one has room above it
    made = Image.new("RGB", (width, height + band), page.getpixel((0, 0)))
    made.paste(page, (0, band))
    return made


def main(names: list[str]) -> None:
    for path in sorted(WORKFLOWS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if path.stem in names or (not names and needs_only_the_embedded_bundle(document)):
            picture = thumbnail(saved_pictures(path))
            picture.save(path.with_suffix(".jpg"), quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
