"""The script that makes the pictures of the workflows."""

from __future__ import annotations

import json
import runpy

import pytest
from PIL import Image

from ..helpers.sources import ROOT

SCRIPT = runpy.run_path(str(ROOT / "tools" / "make_thumbnails.py"))


def document(*loaders):
    nodes = [{"type": kind, "widgets_values": [name]} for kind, name in loaders]
    return {"nodes": [*nodes, {"type": "UnCLIPDecode", "widgets_values": [0]}]}


def test_workflows_that_need_no_other_model_are_told_from_the_rest() -> None:
    alone = SCRIPT["needs_only_the_embedded_bundle"]
    mini, prior = ("UnCLIPLoadBundle", "mini"), ("UnCLIPLoadPrior", "mini/ar-prior.safetensors")
    assert alone(document(mini)) and alone(document(mini, prior))
    for other in (
        ("UnCLIPLoadBundle", "minimal"),
        ("UnCLIPLoadDecoder", "glide/base.pt"),
        ("LoadImage", "example.png"),
        ("CheckpointLoaderSimple", "mini"),
    ):
        assert not alone(document(mini, other))
    assert not alone(document())
    paths = (ROOT / "workflows").glob("*.json")
    made = {path.stem for path in paths if alone(json.loads(path.read_text(encoding="utf-8")))}
    assert made >= {"text_to_image", "pca_probe", "typographic_attack", "fidelity_diversity"}
    assert not {name for name in made if name.startswith(("karlo", "kandinsky", "glide"))}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(256, 256)], (256, 256)),  # never larger
        ([(1024, 1024)], (512, 512)),
        ([(400, 800)], (256, 512)),
        ([(1200, 400)], (768, 256)),  # a strip stays legible
        ([(300, 200)], (300, 200)),
    ],
)
def test_a_thumbnail_is_small_but_not_too_small(sizes, expected) -> None:
    assert SCRIPT["thumbnail"]([Image.new("RGB", size) for size in sizes]).size == expected


def test_several_pictures_become_a_page() -> None:
    page = SCRIPT["thumbnail"]([Image.new("RGB", (256, 256), colour) for colour in ("red", "blue")] * 2)
    assert page.size == (512, 512)
    assert page.getpixel((128, 128)) != page.getpixel((384, 128)) != (255, 255, 255)
