"""Our workflows lie as the tool lays them out for the nodes of today, large enough to be read."""

from __future__ import annotations

import json
import runpy

import pytest
from unclip.nodes import NODE_DISPLAY_NAME_MAPPINGS

from ..helpers.sources import ROOT

SCRIPT = runpy.run_path(str(ROOT / "tools" / "lay_out_workflows.py"))
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
READABLE = 0.6  # zoom; below 0.55 classic nodes show no text
COLLAPSED = 20  # letters; what is behind them, the page leaves out (LiteGraph, drawTitleText)
CHINESE_TITLES = json.loads((ROOT / "web" / "templates_zh.json").read_text(encoding="utf-8"))["titles"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_room_for_its_nodes_and_opens_readable(path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    advice = f"run: python tools/lay_out_workflows.py {path.stem}"
    assert SCRIPT["lay_out"](document) == document, advice
    assert SCRIPT["zoom"](document) >= READABLE


@pytest.mark.parametrize(
    ("node", "width"),  # as measured in ComfyUI's page, front end 1.58.1, classic
    [
        ({"type": "UnCLIPDiffusionPrior"}, 267),  # by its names
        ({"type": "UnCLIPTextAsImageEmbedding"}, 283),  # by its title
        ({"type": "UnCLIPUpsample"}, 210),
        ({"type": "UnCLIPUpsample", "title": "From a small picture to a large one"}, 288),
    ],
)
def test_a_node_is_as_wide_as_the_page_makes_it(node, width) -> None:
    found = SCRIPT["_least_width"](node)
    assert width <= found <= max(SCRIPT["WIDTH"], 1.15 * width)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_title_of_a_collapsed_node_is_shown_whole(path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        english = node.get("title") or NODE_DISPLAY_NAME_MAPPINGS.get(node["type"], node["type"])
        chinese = CHINESE_TITLES.get(english, english)
        if node["flags"].get("collapsed"):
            assert max(len(english), len(chinese)) <= COLLAPSED, f"give node {node['id']} a shorter title"
