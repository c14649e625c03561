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
        ([(400, 800)], (256, 582)),  # a page: with room above for the badge
        ([(1200, 400)], (768, 256)),  # a strip stays legible
        ([(300, 200)], (300, 200)),
    ],
)
def test_a_thumbnail_is_small_but_not_too_small(sizes, expected) -> None:
    assert SCRIPT["thumbnail"]([Image.new("RGB", size) for size in sizes]).size == expected


def test_several_pictures_become_a_page() -> None:
    page = SCRIPT["thumbnail"]([Image.new("RGB", (256, 256), colour) for colour in ("red", "blue")] * 2)
    assert page.size == (512, 512 + 70)
    assert page.getpixel((128, 198)) != page.getpixel((384, 198)) != (255, 255, 255)


def corner(picture: Image.Image) -> Image.Image:
    """What the badge of the template browser hides of a picture that is fitted into a square card."""
    side = max(picture.size)
    card = Image.new("RGB", (side, side), picture.getpixel((0, 0)))
    card.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return card.crop((0, 0, round(0.41 * side), round(0.11 * side)))


def is_plain(picture: Image.Image) -> bool:
    return all(high - low < 24 for low, high in picture.getextrema())  # JPEG is not exact


@pytest.mark.parametrize("size", [(300, 900), (512, 512), (512, 420), (512, 380), (900, 300)])
def test_a_page_leaves_room_for_the_badge(size) -> None:
    page = Image.new("RGB", size, "white")
    page.paste("black", (4, 4, size[0] - 4, size[1] - 4))
    assert is_plain(corner(SCRIPT["with_room"](page)))
    assert is_plain(corner(page)) == (size in {(512, 380), (900, 300)})


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.jpg")), ids=lambda path: path.stem)
def test_no_label_of_a_shipped_page_is_under_the_badge(path) -> None:
    picture = Image.open(path).convert("RGB")
    if picture.width == picture.height:
        pytest.skip("one picture, or a card, which tests/cli/test_foreign_workflows.py looks at")
    assert is_plain(corner(picture)), "run: python tools/make_thumbnails.py"
