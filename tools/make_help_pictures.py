"""Make web/docs/<node>/picture.webp, the picture on the help page of every node, and what else pages show.

What a node does is shown by the embedded mini (help_scenes.py); loaders, files and the ways to ComfyUI's own
nodes are shown wired (help_wirings.py). Run from the root of the repository, after every change of mini's
weights or of a node's sockets: python tools/make_help_pictures.py [NODE …]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from help_diagrams import draw_diagram
from help_scenes import FURTHER, SCENES
from help_studio import Studio
from help_wirings import DIAGRAMS
from PIL import Image
from unclip.nodes import NODE_CLASS_MAPPINGS

PAGES = Path(__file__).resolve().parent.parent / "web" / "docs"
NAME = "picture.webp"
LARGEST = 40_000  # bytes
QUALITIES = (88, 80, 70, 60, 50)


def encoded(picture: Image.Image) -> bytes:
    """A picture as WebP: without loss where that is small, else in the best quality that is small enough.

    Raises:
        ValueError: it is too large in every quality.
    """
    for settings in ({"lossless": True}, *({"quality": quality} for quality in QUALITIES)):
        file = io.BytesIO()
        picture.save(file, "WEBP", method=6, **settings)
        if file.tell() <= LARGEST:
            return file.getvalue()
    raise ValueError(f"a picture has {file.tell()} bytes in the lowest quality; expected at most {LARGEST}")


def main(names: list[str]) -> None:
    studio = None
    for node_id in names or NODE_CLASS_MAPPINGS:
        scenes = dict(FURTHER.get(node_id, {}))
        if node_id in DIAGRAMS:
            write(draw_diagram(DIAGRAMS[node_id], node_id), node_id, NAME)
        else:
            scenes[NAME] = SCENES[node_id]
        for name, scene in scenes.items():
            studio = studio or Studio()
            write(scene(studio), node_id, name)


def write(picture: Image.Image, node_id: str, name: str) -> None:
    (PAGES / node_id / name).write_bytes(encoded(picture))


if __name__ == "__main__":
    with torch.inference_mode():
        main(sys.argv[1:])
