"""The pack as a person sees it: templates, workflows, sockets, help and a run, in ComfyUI's own page.

UNCLIP_SCREENSHOTS names a folder that is to get a picture of every workflow.
"""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.native.embedding_file import save_embedding

from ..helpers.bundle import DIM, tiny_bundle
from ..package.test_web_extension import TYPES
from .browser import HEIGHT, HELP_PICTURE, IMAGE_OF, WIDTH, opened
from .server import PACK, RUN_TIMEOUT
from .shipped import HAS_MINI, WORKFLOWS, read

SCREENSHOTS = os.environ.get("UNCLIP_SCREENSHOTS")
LEGIBLE = 0.6  # zoom; below 0.55 classic nodes show no text


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes-2"])
def comfy(server, request):
    with opened(server, nodes_2=request.param, every_text=bool(SCREENSHOTS)) as page:
        yield page


@pytest.fixture(autouse=True)
def no_complaints(comfy):
    """No error or warning of the page concerns this pack."""
    yield
    found, comfy.complaints = comfy.complaints, []
    assert not found


def test_the_template_browser_shows_every_workflow_with_its_picture(comfy):
    cards = comfy.browse_templates()
    assert cards.count() == len(WORKFLOWS)
    without = [path.stem for path in WORKFLOWS if not comfy.shows_picture(path.stem, thumbnail_size(path))]
    assert not without
    comfy.close_dialogs()


def test_a_search_for_unclip_finds_every_workflow_and_the_first_one_first(comfy):
    found = comfy.search_templates("unclip")
    assert found[0] == "text_to_image"
    assert {path.stem for path in WORKFLOWS} <= set(found)
    assert comfy.search_templates("karlo")[0].startswith("karlo")


def thumbnail_size(workflow: Path) -> tuple[int, int]:
    with Image.open(workflow.with_suffix(".jpg")) as picture:
        return picture.size


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_opens(comfy, path):
    document = read(path)
    comfy.open_template(path.stem, document)
    comfy.page.wait_for_timeout(500)
    assert not [text for text in comfy.dialogs() if "node" in text.lower()], "a dialog on missing nodes"
    comfy.close_dialogs()  # what remains is one on models that are to be downloaded
    graph = comfy.graph()
    assert graph["scale"] >= LEGIBLE, "the page opens it too small to be read"
    assert graph["unknown"] == []
    assert graph["links"] == len(document["links"])
    assert overlapping(graph) == []
    assert outside_of_groups(graph, document) == []
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        comfy.screenshot(Path(SCREENSHOTS) / f"{path.stem}-{comfy.mode}.jpg")


def overlapping(graph) -> list[tuple[str, str]]:
    """Pairs of nodes that cover each other, at the sizes that the page gives them."""
    return [
        (a["name"], b["name"])
        for a, b in combinations(graph["boxes"], 2)
        if all(a["box"][i] < b["box"][i + 2] and b["box"][i] < a["box"][i + 2] for i in (0, 1))
    ]


def outside_of_groups(graph, document) -> list[str]:
    """Nodes that lie in no group; notes may."""
    notes = {str(node["id"]) for node in document["nodes"] if node["type"] == "MarkdownNote"}

    def within(box, group):
        return box[0] >= group[0] and box[1] >= group[1] and box[2] <= group[2] and box[3] <= group[3]

    return [
        entry["name"]
        for entry in graph["boxes"]
        if entry["name"].split()[0] not in notes
        and not any(within(entry["box"], group) for group in graph["groups"])
    ]


def test_sockets_and_wires_have_colours(comfy):
    found = comfy.page.evaluate(
        """() => {
          const types = new Set();
          for (const [name, type] of Object.entries(window.LiteGraph.registered_node_types)) {
            if (!name.startsWith("UnCLIP")) continue;
            const node = window.LiteGraph.createNode(name);
            for (const slot of [...node.inputs, ...node.outputs])
              if (/^UNCLIP_\\w+$/.test(slot.type)) types.add(slot.type);
          }
          const canvas = window.app.canvas;
          return [...types].map(type => [
            type, canvas.default_connection_color_byType[type], canvas.constructor.link_type_colors[type],
          ]);
        }"""
    )
    assert {name for name, *_ in found} == TYPES
    assert all(socket and socket == wire for _, socket, wire in found), found
    assert len({socket for _, socket, _ in found}) == len(found)


@pytest.mark.skipif(not HAS_MINI, reason="the embedded bundle is not there")
def test_run_makes_a_picture_in_the_page(comfy, server):
    path = PACK / "workflows" / "text_to_image.json"
    comfy.open_template(path.stem, read(path))
    assert comfy.page.evaluate(IMAGE_OF, "SaveImage") is None
    comfy.run_button().click()
    comfy.page.wait_for_function(IMAGE_OF, arg="SaveImage", timeout=1000 * RUN_TIMEOUT)
    image = comfy.page.evaluate(IMAGE_OF, "SaveImage")
    assert f"{server.address}/api/view?" in image["src"]
    assert image["size"] == [256, 256]


@pytest.mark.parametrize("class_type", ["UnCLIPDecode", "UnCLIPDiffusionPrior", "UnCLIPLoadBundle"])
def test_the_help_page_of_a_node_opens_beside_the_graph(comfy, class_type):
    path = PACK / "workflows" / "text_to_image.json"
    if comfy.graph()["links"] != len(read(path)["links"]):
        comfy.open_template(path.stem, read(path))
    comfy.select(class_type)
    button = comfy.page.get_by_test_id("info-button")
    button.wait_for()
    button.click()
    page = comfy.page.locator(".node-help-content")
    page.get_by_role("heading", name="When to use it").wait_for()
    written = (PACK / "web" / "docs" / class_type / "en.md").read_text(encoding="utf-8")
    shown = " ".join(page.inner_text().split())
    for line in written.splitlines():
        if line and line[0].isalpha() and not set("*`[_") & set(line):
            assert line in shown
    picture = f"{class_type}/picture.webp"
    comfy.page.wait_for_function(HELP_PICTURE, arg=picture)
    with Image.open(PACK / "web" / "docs" / picture) as shipped:
        assert comfy.page.evaluate(HELP_PICTURE, picture) == list(shipped.size)


def test_an_embedding_can_be_dropped_on_the_canvas_and_on_its_node(comfy, server, tmp_path):
    loader, space = ("UnCLIPLoadEmbedding", "file"), tiny_bundle(upsamplers=0).clip.space
    files = [
        save_embedding(Embedding(torch.full((1, DIM), value), space), tmp_path / f"{name}.safetensors")
        for name, value in (("first", 1.0), ("second", 2.0))
    ]
    first, second = (f"unclip_embeddings/{file.name} [input]" for file in files)
    comfy.new_workflow()
    comfy.drop(files[0], (WIDTH / 2, HEIGHT / 2))
    comfy.wait_for_widget(*loader, first)
    (node,) = comfy.widgets(*loader)
    comfy.drop(files[1], node["place"])
    comfy.wait_for_widget(*loader, second)
    assert len(comfy.widgets(*loader)) == 1
    assert comfy.dialogs() == []
    (listed, *_) = server.get_json(f"/object_info/{loader[0]}")[loader[0]]["input"]["required"]["file"]
    assert {first, second} <= set(listed)
    loaded = server.log.parent / "input" / "unclip_embeddings"
    assert [(loaded / file.name).read_bytes() for file in files] == [file.read_bytes() for file in files]
