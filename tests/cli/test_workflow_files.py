"""Workflow files in all their forms."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.reading import load_workflow, parse_workflow

from ..helpers.workflow import UiBuilder, catalog

API = {
    "1": {"class_type": "Number", "inputs": {"seed": 3, "strength": 0.5, "mode": "plain"}},
    "2": {"class_type": "Show", "inputs": {"value": ["1", 0]}, "_meta": {"title": "Look"}},
}


def ui_form(seed=3):
    ui = UiBuilder()
    ui.node("Number", seed, "fixed", 0.5, "plain", "x", False, outputs=("INT", "STRING"))
    ui.node("Show", inputs={"value": "*"})
    ui.link(1, 0, 2, "value")
    return ui.json()


def write_json(path, document, encoding="utf-8"):
    path.write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)
    return path


def write_png(path, **chunks):
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_the_api_form(tmp_path):
    made = load_workflow(write_json(tmp_path / "a.json", API), catalog())
    assert made.nodes["2"].inputs == {"value": ["1", 0]}
    assert made.nodes["2"].title == "Look"
    assert made.nodes["1"].title == "Number"
    assert made.ui is None
    assert {k: v["inputs"] for k, v in made.to_api().items()} == {k: v["inputs"] for k, v in API.items()}


def test_the_api_form_does_not_need_the_classes():
    made = parse_workflow({"7": {"class_type": "Elsewhere", "inputs": {}}}, catalog())
    assert made.nodes["7"].class_type == "Elsewhere"


def test_to_api_gives_a_copy():
    made = parse_workflow(API, catalog())
    made.to_api()["2"]["inputs"]["value"].append("changed")
    assert made.nodes["2"].inputs == {"value": ["1", 0]}


def test_a_byte_order_mark_and_letters_of_every_alphabet(tmp_path):
    document = {"1": {"class_type": "Show", "inputs": {"value": "лиса 狐 🦊"}}}
    path = write_json(tmp_path / "лиса.json", document, encoding="utf-8-sig")
    assert load_workflow(path, catalog()).nodes["1"].inputs["value"] == "лиса 狐 🦊"


def test_the_body_of_post_prompt():
    ui = ui_form()
    body = {"prompt": API, "client_id": "x", "extra_data": {"extra_pnginfo": {"workflow": ui}}}
    made = parse_workflow(body, catalog())
    assert set(made.nodes) == {"1", "2"}
    assert made.ui == ui


def test_a_png_with_both_chunks_runs_its_prompt_and_keeps_its_workflow(tmp_path):
    path = write_png(tmp_path / "a.png", prompt=json.dumps(API), workflow=json.dumps(ui_form(seed=9)))
    made = load_workflow(path, catalog())
    assert made.nodes["1"].inputs["seed"] == 3
    assert made.ui["nodes"][0]["widgets_values"][0] == 9


def test_a_png_with_only_the_ui_form(tmp_path):
    path = write_png(tmp_path / "a.png", workflow=json.dumps(ui_form(seed=9)))
    assert load_workflow(path, catalog()).nodes["1"].inputs["seed"] == 9


def test_a_png_whose_prompt_is_damaged_falls_back_to_its_workflow(tmp_path):
    path = write_png(tmp_path / "a.png", prompt="{nonsense", workflow=json.dumps(ui_form(seed=9)))
    assert load_workflow(path, catalog()).nodes["1"].inputs["seed"] == 9


def test_the_form_is_told_by_content_not_by_name(tmp_path):
    path = write_png(tmp_path / "renamed.png", prompt=json.dumps(API)).rename(tmp_path / "renamed.json")
    assert set(load_workflow(path, catalog()).nodes) == {"1", "2"}


def refused(path):
    with pytest.raises(WorkflowError) as caught:
        load_workflow(path, catalog())
    return str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"WORKFLOW: there is no file .*gone\.json"):
        load_workflow(tmp_path / "gone.json", catalog())


def test_a_png_without_a_workflow(tmp_path):
    message = refused(write_png(tmp_path / "plain.png", Comment="hello"))
    assert message.startswith("plain.png: this file carries no workflow (no text named prompt or workflow)")


def test_a_damaged_png(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert refused(path).startswith("cut.png: this PNG is cut short")


def test_broken_json_is_located(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{"1": {\n  "class_type" "Show"}}')
    assert refused(path) == "bad.json: not valid JSON at line 2, column 16: Expecting ':' delimiter."


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    assert refused(path).startswith("photo.jpg: this is neither a workflow (.json) nor a picture or video")


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ([], "found a list."),
        ({}, "found an empty object."),
        ({"steps": 3}, "found an object with the keys ['steps']."),
        ({"prompt": {}}, "found an object with the keys ['prompt']."),
    ],
)
def test_json_that_is_no_workflow(tmp_path, document, found):
    message = refused(write_json(tmp_path / "x.json", document))
    assert message.startswith("x.json: this JSON is not a workflow. Expected ComfyUI's UI form")
    assert message.endswith(found)


def test_api_nodes_without_a_class_are_all_named(tmp_path):
    document = {
        "1": {"class_type": "Show"},
        "2": {"inputs": {}},
        "3": 5,
        "4": {"class_type": "A", "inputs": []},
    }
    lines = refused(write_json(tmp_path / "x.json", document)).splitlines()
    assert lines == [
        "x.json: node 2 has no class_type; every entry of the API form has one.",
        "x.json: node 3 has no class_type; every entry of the API form has one.",
        "node 4 (A): inputs must be an object, found [].",
    ]
