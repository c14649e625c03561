"""Our templates in a Chinese page, and what App Mode of newer pages shows of text_to_image."""

from __future__ import annotations

import json

import pytest

from .browser import opened
from .server import PACK
from .shipped import FOLDER, HAS_MINI, WORKFLOWS, read

LANGUAGE = "Comfy.Locale"
APP_MODE = "Comfy.ToggleLinear"
TEXTS = """() => ({
  titles: Object.fromEntries(window.app.graph._nodes.map(node => [node.id, node.title])),
  notes: window.app.graph._nodes.filter(node => node.type === "MarkdownNote").map(n => n.widgets[0].value),
  groups: window.app.graph._groups.map(group => group.title),
})"""
HAS_COMMAND = "id => window.app.extensionManager.command.commands.some(command => command.id === id)"


@pytest.fixture(scope="module")
def chinese(server):
    server.post("/settings", {LANGUAGE: "zh"})
    try:
        with opened(server) as page:
            yield page
    finally:
        server.post("/settings", {LANGUAGE: "en"})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_opens_in_chinese(chinese, path):
    document = read(path)
    chinese.open_template(path.stem, document)
    shown = chinese.page.evaluate(TEXTS)
    table = json.loads((PACK / "web" / "templates_zh.json").read_text(encoding="utf-8"))
    notes = [node["widgets_values"][0] for node in document["nodes"] if node["type"] == "MarkdownNote"]
    assert shown["notes"] == [table["notes"][note] for note in notes]
    numbers = [group["title"].partition(" · ") for group in document["groups"]]
    assert shown["groups"] == [f"{number} · {table['titles'][title]}" for number, _, title in numbers]
    renamed = {str(node["id"]): node["title"] for node in document["nodes"] if node.get("title")}
    assert {key: shown["titles"][key] for key in renamed} == {
        key: table["titles"][title] for key, title in renamed.items()
    }
    assert chinese.complaints == []


@pytest.mark.skipif(not HAS_MINI, reason="the embedded bundle is not there")
def test_app_mode_shows_the_caption_and_makes_a_picture(server):
    with opened(server) as comfy:
        path = FOLDER / "text_to_image.json"
        comfy.open_template(path.stem, read(path))
        if not comfy.page.evaluate(HAS_COMMAND, APP_MODE):
            pytest.skip("this page has no App Mode")
        comfy.command(APP_MODE)
        comfy.page.get_by_role("button", name="Skip", exact=True).click()  # its tour
        inputs = comfy.page.get_by_test_id("app-mode-widget-item")
        inputs.first.wait_for()
        names = [text.splitlines()[0] for text in inputs.all_inner_texts()]
        assert names == [name for _, name in read(path)["extra"]["linearData"]["inputs"]]
        comfy.page.get_by_test_id("linear-run-button").click()
        picture = comfy.page.locator("[data-testid='linear-center-panel'] img[src*='/view?'], video").first
        picture.wait_for()
        assert comfy.complaints == []
