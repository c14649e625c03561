"""Notices of errors, refusals and missing models in the page: when they come and when they go."""

from __future__ import annotations

from typing import Any

import pytest

from .browser import ComfyPage, opened
from .prompts import text_to_image
from .server import RUN_TIMEOUT
from .shipped import FOLDER, read

SET = """([type, name, value]) => {
  const node = window.app.graph._nodes.find(node => node.type === type);
  node.widgets.find(widget => widget.name === name).value = value;
}"""
# A loader of embeddings that has these files; gives the middle of its widget in the window.
LABELS = """names => {
  const node = window.LiteGraph.createNode("UnCLIPLoadEmbedding");
  node.pos = [100, 200];
  window.app.graph.add(node);
  const widget = node.widgets.find(widget => widget.name === "file");
  widget.options.values = names;
  widget.value = names[0];
  window.app.canvas.ds.scale = 1;
  window.app.canvas.ds.offset = [100, 100];
  window.app.canvas.setDirty(true, true);
  const { ds, canvas } = window.app.canvas, box = canvas.getBoundingClientRect();
  return [box.left + (100 + node.size[0] / 2 + ds.offset[0]) * ds.scale,
          box.top + (200 + 42 + ds.offset[1]) * ds.scale];
}"""


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes-2"])
def comfy(server, request):
    with opened(server, nodes_2=request.param) as page:
        yield page


def open_prompt(comfy: ComfyPage, prompt: dict[str, Any], name: str) -> None:
    comfy.new_workflow()
    comfy.page.evaluate("([prompt, name]) => { window.app.loadApiJson(prompt, name); }", [prompt, name])
    comfy.page.wait_for_function("count => window.app.graph._nodes.length === count", arg=len(prompt))


def notice(comfy: ComfyPage, text: str) -> Any:
    return comfy.page.get_by_role("alert").filter(has_text=text)


def wait_until_told(comfy: ComfyPage, text: str) -> bool:
    """Until a notice or a dialog of the page has a text; whether it is the notice."""
    either = comfy.page.locator("[role=alert], [role=dialog]").filter(has_text=text)
    either.first.wait_for(timeout=1000 * RUN_TIMEOUT)
    comfy.page.wait_for_timeout(1500)  # one of the other kind would come by now
    notices, dialogs = notice(comfy, text), [each for each in comfy.dialogs() if text in each]
    assert bool(notices.count()) != bool(dialogs), "told once"
    return bool(notices.count())


def wait_until_gone(comfy: ComfyPage, text: str) -> None:
    comfy.page.wait_for_function(
        "text => ![...document.querySelectorAll('[role=alert]')].some(e => e.textContent.includes(text))",
        arg=text,
    )


def test_a_refusal_before_the_run_is_told_until_the_next_run(comfy):
    open_prompt(comfy, text_to_image(), "refused")
    comfy.page.evaluate(SET, ["UnCLIPLoadBundle", "bundle", "nobody"])
    text = "there is no bundle 'nobody'"
    for _ in range(2):  # a second one is told as well
        comfy.run_button().click()
        is_notice = wait_until_told(comfy, text)
        comfy.close_dialogs()
        assert [each for each in comfy.complaints if "PromptExecutionError" not in each] == []
        assert [each for each in comfy.complaints if "/unclip/" in each] == [], "we are blamed"
    if is_notice:
        comfy.page.wait_for_timeout(21_000)
        assert notice(comfy, text).count(), "gone before it was read"
    comfy.page.evaluate(SET, ["UnCLIPLoadBundle", "bundle", "tiny"])
    comfy.run_button().click()
    wait_until_gone(comfy, text)
    comfy.complaints.clear()  # the page logs the error that was asked for


def test_a_notice_goes_with_its_workflow(comfy):
    open_prompt(comfy, text_to_image(), "refused too")
    comfy.page.evaluate(SET, ["UnCLIPLoadBundle", "bundle", "nobody"])
    comfy.run_button().click()
    wait_until_told(comfy, "there is no bundle 'nobody'")
    comfy.close_dialogs()
    path = FOLDER / "glide_inpaint.json"
    comfy.open_template(path.stem, read(path))
    wait_until_gone(comfy, "there is no bundle 'nobody'")
    missing = "glide/base_inpaint.pt, glide/upsample_inpaint.pt: This is GLIDE"
    notice(comfy, missing).first.wait_for()
    comfy.close_dialogs()
    comfy.new_workflow()
    wait_until_gone(comfy, missing)
    comfy.complaints.clear()


def test_files_of_embeddings_are_told_apart_and_chosen_by_their_paths(comfy):
    names = [f"unclip_embeddings/{name}.safetensors [output]" for name in ("red fox", "owl")]
    comfy.new_workflow()
    place = comfy.page.evaluate(LABELS, names)
    comfy.page.wait_for_timeout(500)
    if comfy.mode == "nodes-2":
        node = comfy.page.locator("[data-node-id]").first
        assert "red fox [output]" in node.inner_text()
        node.get_by_text("red fox").click()
    else:
        comfy.page.mouse.click(*place)
    comfy.page.get_by_text("owl [output] · unclip_embeddings").last.click()
    comfy.wait_for_widget("UnCLIPLoadEmbedding", "file", names[1])
    assert comfy.complaints == []
