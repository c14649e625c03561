"""Our templates and notices in a Chinese page."""

from __future__ import annotations

import json

import pytest

from .browser import ALONE, opened
from .server import PACK
from .shipped import FOLDER, WORKFLOWS, read

LANGUAGE = "Comfy.Locale"
TEXTS = """() => ({
  titles: Object.fromEntries(window.app.graph._nodes.map(node => [node.id, node.title])),
  notes: window.app.graph._nodes.filter(node => node.type === "MarkdownNote").map(n => n.widgets[0].value),
  groups: window.app.graph._groups.map(group => group.title),
})"""


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


def test_notices_are_chinese(chinese, tmp_path):
    path = FOLDER / "glide_inpaint.json"
    chinese.open_template(path.stem, read(path))
    notices = chinese.page.get_by_role("alert")
    told = notices.filter(has_text="这是 OpenAI 的 GLIDE（filtered）（约 6 GB，许可：MIT）。").first
    told.wait_for()
    assert "This is" not in told.inner_text()
    chinese.new_workflow()
    chinese.page.evaluate(ALONE, "UnCLIPLoadEmbedding")
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (node,) = chinese.widgets("UnCLIPLoadEmbedding", "file")
    chinese.drop(foreign, node["place"])
    notices.filter(has_text="foreign.safetensors 里没有 unCLIP 嵌入").first.wait_for()
    assert chinese.complaints == []
