"""What a person meets at the desk: offers of wires, help in a narrow panel, errors, dropped pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..package.test_web_extension import TYPES
from .browser import HEIGHT, WIDTH, opened
from .prompts import LOAD, PRIOR, text_to_image
from .server import PACK, RUN_TIMEOUT

PANEL = 270  # px, as narrow as the page makes its panel of help
# One node and output for each of our sockets, and what is to be offered first.
FIRST = {
    ("UnCLIPLoadBundle", 0): "UnCLIPTextEncode",
    ("UnCLIPTextEncode", 0): "UnCLIPDiffusionPrior",
    ("UnCLIPDiffusionPrior", 0): "UnCLIPDecode",
    ("UnCLIPLoadPrior", 0): "UnCLIPDiffusionPrior",
    ("UnCLIPLoadDecoder", 0): "UnCLIPDecode",
    ("UnCLIPLoadUpsampler", 0): "UnCLIPUpsample",
    ("UnCLIPNoise", 0): "UnCLIPDecode",
    ("UnCLIPPCAFromPrior", 0): "UnCLIPPCAReconstruct",
    ("UnCLIPRegion", 0): "UnCLIPDecode",
}

NARROW_HELP = """width => {
  const help = document.querySelector(".node-help-content");
  help.style.width = `${width}px`;
  const edge = help.getBoundingClientRect().right + 1;
  const wide = element => element.getBoundingClientRect().right > edge
    || (getComputedStyle(element).display !== "inline" && element.scrollWidth > element.clientWidth + 1);
  return {
    tables: help.querySelectorAll("table").length,
    wide: [help, ...help.querySelectorAll("*")].filter(wide).map(element => element.textContent.slice(0, 80)),
  };
}"""
PLACES = "() => window.app.graph._nodes.map(node => `${node.type} ${node.pos}`).sort()"
ADD = "type => { window.app.graph.add(window.LiteGraph.createNode(type)); }"


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes-2"])
def comfy(server, request):
    with opened(server, nodes_2=request.param) as page:
        yield page


def test_each_of_our_sockets_is_dragged_below() -> None:
    assert {NODE_CLASS_MAPPINGS[name].RETURN_TYPES[slot] for name, slot in FIRST} == TYPES


@pytest.mark.parametrize(("source", "expected"), FIRST.items(), ids=lambda value: str(value))
def test_a_wire_that_is_dropped_offers_the_node_that_comes_next(comfy, source, expected):
    offered = comfy.drag_out(*source)
    ours = [name for name in offered if name.startswith("UnCLIP")]
    assert ours[0] == expected


def test_help_is_read_without_sideways_scrolling(comfy):
    for class_type in ("UnCLIPDecode", "UnCLIPDiffusionPrior", "UnCLIPGrid"):
        comfy.new_workflow()
        comfy.page.evaluate(ADD, class_type)
        comfy.select(class_type)
        button = comfy.page.get_by_test_id("info-button")
        button.wait_for()
        button.click()
        help_page = comfy.page.locator(".node-help-content")
        help_page.get_by_role("heading", name="When to use it").wait_for()
        found = comfy.page.evaluate(NARROW_HELP, PANEL)
        assert found == {"tables": 0, "wide": []}


def test_an_error_is_told_in_sight(comfy):
    comfy.new_workflow()
    prompt = text_to_image()
    prompt[PRIOR]["class_type"] = "UnCLIPAutoregressivePrior"  # and the bundle's first prior is another
    prompt[PRIOR]["inputs"] |= {"prior": [LOAD, 1], "temperature": 1.0}
    comfy.page.evaluate("prompt => { window.app.loadApiJson(prompt, 'wrong prior'); }", prompt)
    comfy.page.wait_for_function("count => window.app.graph._nodes.length === count", arg=len(prompt))
    comfy.run_button().click()
    # A notice of ours, or the dialog that older pages open.
    told = comfy.page.locator("[role=alert], [role=dialog]").filter(has_text="is not an autoregressive prior")
    told.first.wait_for(timeout=1000 * RUN_TIMEOUT)
    assert "Traceback" not in told.first.inner_text()
    comfy.close_dialogs()
    comfy.complaints.clear()  # the page logs the error that was asked for


@pytest.fixture(scope="module")
def generated(models, tmp_path_factory) -> Path:
    """A picture of ``unclip generate``."""
    path = tmp_path_factory.mktemp("generated") / "fox.png"
    command = [sys.executable, "-m", "unclip.cli.app", "generate", "a red fox", "--output", str(path)]
    command += ["--bundle", str(models / "tiny"), "--precision", "fp32", "--device", "cpu", "--seed", "31"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACK.parent)}  # as the server's
    subprocess.run(command, check=True, env=environment, cwd=path.parent)
    return path


def test_a_picture_that_is_dropped_and_run_twice_gives_the_same_pixels(comfy, server, generated, tmp_path):
    expected = np.asarray(Image.open(generated).convert("RGB"))
    picture, laid_out = generated, None
    for attempt in range(2):  # what `unclip generate` wrote, then what the page saved of it
        with Image.open(picture) as carrier:
            assert {"prompt", "workflow"} <= set(carrier.info)
        server.post("/free", {"unload_models": False, "free_memory": True})  # else nothing runs again
        comfy.new_workflow()
        comfy.drop(picture, (WIDTH / 2, HEIGHT / 2))
        comfy.page.wait_for_function("() => window.app.graph._nodes.some(node => node.type === 'SaveImage')")
        places = comfy.page.evaluate(PLACES)
        assert places == (laid_out or places), "it opens as it was laid out"
        laid_out = places
        before = set(server.get_json("/history"))
        comfy.run_button().click()
        (content,) = server.files(server.newer(before))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), expected)
        picture = tmp_path / f"picture-{attempt}.png"
        picture.write_bytes(content)
