"""``unclip run --server`` against a stand-in for ComfyUI on the loopback."""

from __future__ import annotations

import json

import pytest
from unclip.cli.server import remote_run as server_module

from ..helpers.cli_server import run, serving, success, write_workflow
from ..helpers.comfy_server import PROMPT_ID
from ..helpers.workflow import UiBuilder, node_class


@pytest.fixture
def comfy():
    with serving() as fake:
        yield fake


@pytest.fixture
def workflow(tmp_path):
    return write_workflow(tmp_path)


def test_a_run_from_queue_to_file(comfy, workflow, tmp_path):
    success(comfy)
    result = run(workflow, comfy, tmp_path, "--set", "1.seed=8")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "out" / "a_00001_.png"
    assert result.stdout.splitlines() == [str(path)]
    assert path.read_bytes() == b"a picture"
    (body,) = comfy.sent("/prompt")
    assert body["client_id"] == comfy.clients[0]
    assert body["prompt"]["1"]["inputs"]["seed"] == 8
    assert body["prompt"]["2"]["_meta"] == {"title": "Keep"}
    assert "extra_data" not in body
    assert "Number" in result.stderr  # the bar of the node that reported progress
    assert "2/2" in result.stderr


def test_quiet(comfy, workflow, tmp_path):
    success(comfy)
    assert run(workflow, comfy, tmp_path, "--quiet").stderr == ""


def test_an_older_server_ends_with_executing_nothing(comfy, workflow, tmp_path):
    comfy.says("execution_start")
    comfy.says("executing", node=None)
    assert run(workflow, comfy, tmp_path).exit_code == 0


def test_a_history_that_comes_after_the_end_is_waited_for(comfy, workflow, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "MOMENT", 0.01)
    comfy.late = 3
    success(comfy)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "out" / "a_00001_.png")]


def test_a_history_that_never_comes(comfy, workflow, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "MOMENT", 0.01)
    monkeypatch.setattr(server_module, "RECORDING", 0.1)
    comfy.history = {}
    success(comfy)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.endswith(
        f"the server {comfy.url} says that the run {PROMPT_ID} has ended well, but 0.1 seconds later its "
        "history still does not tell what the run made; perhaps somebody cleared it. Nothing is lost: fetch "
        "the pictures from the output folder of that ComfyUI.\n"
    )


def test_messages_of_other_runs_are_passed_over(comfy, workflow, tmp_path):
    other = {"prompt_id": "another", "node_id": "1", "exception_type": "ValueError", "exception_message": "x"}
    comfy.messages.append({"type": "execution_error", "data": other})
    comfy.messages.append({"type": "executing", "data": {"node": None}})
    comfy.messages.append({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}}})
    success(comfy)
    assert run(workflow, comfy, tmp_path).exit_code == 0


def test_ui_workflows_are_read_with_the_servers_own_classes(comfy, tmp_path):
    comfy.declare(
        "Foreign/Node", node_class({"noise_seed": ("INT", {}), "name": (["a", "b"],), "text": ("STRING", {})})
    )
    ui = UiBuilder()
    ui.node("Foreign/Node", 5, "randomize", "b", "fox", outputs=("INT",))
    ui.node("Show", inputs={"value": "*"})
    ui.link(1, 0, 2, "value")
    path = tmp_path / "ui.json"
    path.write_text(json.dumps(ui.json()))
    success(comfy)
    result = run(path, comfy, tmp_path)
    assert result.exit_code == 0, result.stderr
    (body,) = comfy.sent("/prompt")
    assert body["prompt"]["1"]["inputs"] == {"noise_seed": 5, "name": "b", "text": "fox"}
    assert body["extra_data"] == {"extra_pnginfo": {"workflow": ui.json()}}


def test_a_class_that_the_server_lacks(comfy, tmp_path):
    ui = UiBuilder()
    ui.node("Nunber")
    path = tmp_path / "ui.json"
    path.write_text(json.dumps(ui.json()))
    result = run(path, comfy, tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        f"node 1 (Nunber): the server {comfy.url} has no node class 'Nunber'. Did you mean \"Number\"?\n"
    )


def test_sub_folders_previews_and_names_that_are_taken(comfy, workflow, tmp_path):
    images = [
        {"filename": "a.png", "subfolder": "x/y", "type": "output"},
        {"filename": "p.png", "subfolder": "", "type": "temp"},
    ]
    comfy.history["outputs"] = {"2": {"images": images, "animated": [False]}}
    comfy.files = {("output", "x/y", "a.png"): b"new", ("temp", "", "p.png"): b"preview"}
    old = tmp_path / "out" / "x" / "y" / "a.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    success(comfy)
    kept, preview = run(workflow, comfy, tmp_path).stdout.splitlines()
    assert kept == str(old.with_name("a-2.png"))
    assert old.read_bytes() == b"old"
    assert old.with_name("a-2.png").read_bytes() == b"new"
    assert str(tmp_path / "out") not in preview


@pytest.mark.parametrize(
    ("filename", "subfolder"), [("../evil.png", ""), ("evil.png", "../.."), ("a/../../evil.png", "")]
)
def test_a_server_cannot_write_elsewhere(comfy, workflow, tmp_path, filename, subfolder):
    comfy.history["outputs"] = {
        "2": {"images": [{"filename": filename, "subfolder": subfolder, "type": "output"}]}
    }
    comfy.files["output", subfolder, filename] = b"evil"
    success(comfy)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    assert "which leads out of" in result.stderr
    assert not (tmp_path / "evil.png").exists()


def test_a_result_that_is_gone(comfy, workflow, tmp_path):
    comfy.files.clear()
    success(comfy)
    assert run(workflow, comfy, tmp_path).stderr.endswith(
        "node 2: the server made 'a_00001_.png', but does not hand it out: HTTP 404 Not Found.\n"
    )


# ---------------------------------------------------------------------------------------------------- upload


def test_pictures_of_the_input_folder_are_uploaded(comfy, tmp_path):
    comfy.declare("LoadImage", node_class({"image": ([], {"image_upload": True})}))
    document = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    }
    path = tmp_path / "w.json"
    path.write_text(json.dumps(document))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "me.png").write_bytes(b"my picture")
    success(comfy)
    assert run(path, comfy, tmp_path, "--input", str(pictures)).exit_code == 0
    (upload,) = comfy.sent("/upload/image")
    assert b'name="image"; filename="me.png"' in upload
    assert b"my picture" in upload
    (body,) = comfy.sent("/prompt")
    assert body["prompt"]["1"]["inputs"]["image"] == "stored (1).png"
    assert body["prompt"]["2"]["inputs"]["image"] == "example.png"


@pytest.mark.parametrize("answer", [{}, ["stored.png"], "no JSON"])
def test_an_upload_that_is_answered_with_something_else(comfy, tmp_path, answer):
    comfy.upload = answer
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}}}))
    (tmp_path / "me.png").write_bytes(b"my picture")
    result = run(path, comfy, tmp_path, "--input", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == (
        f"node 1 (LoadImage), input 'image': {comfy.url} does not answer the upload of 'me.png' like a "
        "ComfyUI server; is the address right?\n"
    )


def test_without_an_input_folder_nothing_is_uploaded(comfy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.png").write_bytes(b"my picture")
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}}}))
    success(comfy)
    assert run(path, comfy, tmp_path).exit_code == 0
    assert comfy.sent("/upload/image") == []
