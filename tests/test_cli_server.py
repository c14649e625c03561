"""``unclip run --server`` against a stand-in for ComfyUI on the loopback."""

from __future__ import annotations

import json
import socket

import pytest
from typer.testing import CliRunner
from unclip.cli import server as server_module
from unclip.cli.app import build_app
from unclip.cli.server import ComfyServer

from .helpers_comfy_server import CLOSE, PROMPT_ID, FakeComfy
from .helpers_workflow import Number, Show, UiBuilder, node_class

API = {
    "1": {"class_type": "Number", "inputs": {"seed": 3, "strength": 0.5, "mode": "plain"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Keep"}},
}
MADE = {"outputs": {"2": {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}}}


@pytest.fixture
def comfy():
    with FakeComfy() as fake:
        fake.declare("Number", Number)
        fake.declare("Show", Show)
        fake.history = {**MADE, "status": {"status_str": "success", "messages": []}}
        fake.files["output", "", "a_00001_.png"] = b"a picture"
        yield fake


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(API))
    return path


def run(workflow, comfy, tmp_path, *more):
    words = ["run", str(workflow), "--server", comfy.url, "--output", str(tmp_path / "out"), *more]
    return CliRunner().invoke(build_app(), words)


def success(comfy):
    comfy.says("execution_start")
    comfy.says("execution_cached", nodes=[])
    comfy.says("executing", node="1")
    comfy.says("progress", node="1", value=1, max=2)
    comfy.messages.append(b"\0\0\0\1 a preview picture")
    comfy.says("progress", node="1", value=2, max=2)
    comfy.says("executed", node="2", output={})
    comfy.says("execution_success")


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


# ---------------------------------------------------------------------------------------------------- errors


def test_nobody_there(workflow, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = CliRunner().invoke(build_app(), ["run", str(workflow), "--server", f"127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"the server http://127.0.0.1:{port} cannot be reached: ")
    assert "Is ComfyUI running there" in result.stderr


@pytest.mark.parametrize("url", ["ftp://host", "http://", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match=r"expected a server's address, such as http://127\.0\.0\.1:8188"):
        ComfyServer(url)


def test_addresses():
    assert ComfyServer("host:8188/").websocket_url.startswith("ws://host:8188/ws?clientId=")
    assert ComfyServer("https://host/comfy").websocket_url.startswith("wss://host/comfy/ws?clientId=")


def test_a_refused_workflow_is_told_by_node_and_input(comfy, workflow, tmp_path):
    comfy.answer = (
        400,
        {
            "error": {
                "type": "prompt_outputs_failed_validation",
                "message": "Prompt outputs failed validation",
            },
            "node_errors": {
                "1": {
                    "class_type": "Number",
                    "errors": [
                        {
                            "type": "value_smaller_than_min",
                            "message": "Value -1 smaller than min of 0",
                            "details": "seed",
                            "extra_info": {"input_name": "seed"},
                        },
                        {
                            "type": "value_not_in_list",
                            "message": "Value not in list",
                            "details": "mode: 'x' not in ['plain']",
                            "extra_info": {"input_name": "mode"},
                        },
                    ],
                },
                "9": {"class_type": "Gone", "errors": [{"message": "Odd", "details": ""}]},
            },
        },
    )
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "node 1 (Number), input 'seed': Value -1 smaller than min of 0.",
        "node 1 (Number), input 'mode': Value not in list: mode: 'x' not in ['plain'].",
        "node 9 (Gone): Odd.",
    ]


def test_a_refusal_without_nodes(comfy, workflow, tmp_path):
    comfy.answer = (
        400,
        {"error": {"message": "Prompt has no outputs", "details": "", "type": "x"}, "node_errors": {}},
    )
    assert (
        run(workflow, comfy, tmp_path).stderr == f"{comfy.url} refused the workflow: Prompt has no outputs.\n"
    )


def test_a_refusal_that_is_no_json(comfy, workflow, tmp_path):
    comfy.answer = (503, "busy")
    assert run(workflow, comfy, tmp_path).stderr == (
        f"{comfy.url} refused the workflow: HTTP 503 Service Unavailable.\n"
    )


def test_outputs_that_the_server_leaves_out_are_warned_of(comfy, workflow, tmp_path):
    errors = {"1": {"class_type": "Number", "errors": [{"message": "Bad", "details": ""}]}}
    comfy.answer = (200, {"prompt_id": PROMPT_ID, "node_errors": errors})
    success(comfy)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 0
    assert "warning: node 1 (Number): Bad. The server runs the rest of the workflow." in result.stderr


@pytest.mark.parametrize(
    ("kind", "text"),
    [("ValueError", "steps: found 0"), ("torch.OutOfMemoryError", "OutOfMemoryError: steps: found 0")],
)
def test_a_node_that_fails(comfy, workflow, tmp_path, kind, text):
    comfy.says("execution_start")
    comfy.says(
        "execution_error",
        node_id="2",
        node_type="SaveImage",
        exception_type=kind,
        exception_message="steps: found 0\n",
        traceback=[],
    )
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith(f'node 2 (SaveImage "Keep"): {text}\n')


def test_interrupted_by_somebody_else(comfy, workflow, tmp_path):
    comfy.says("execution_interrupted", node_id="1", node_type="Number", executed=[])
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith("node 1 (Number): the run was interrupted on the server.\n")


def test_a_lost_connection_is_made_up_for_by_the_history(comfy, workflow, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "PAUSE", 0.01)
    comfy.says("execution_start")
    comfy.messages.append(CLOSE)
    assert run(workflow, comfy, tmp_path).exit_code == 0


def test_the_history_tells_of_a_failure_too(comfy, workflow, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "SILENCE", 0.05)
    failure = {
        "node_id": "1",
        "exception_type": "ValueError",
        "exception_message": "no",
        "prompt_id": PROMPT_ID,
    }
    comfy.history["status"] = {"status_str": "error", "messages": [["execution_error", failure]]}
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith("node 1 (Number): no\n")


@pytest.mark.parametrize("started", [True, False])
def test_ctrl_c_stops_the_run_on_the_server(comfy, workflow, tmp_path, monkeypatch, started):
    hear = server_module.Follower.hear

    def pressed(self, message):
        hear(self, message)
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module.Follower, "hear", pressed)
    comfy.says("execution_start" if started else "status")
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 130
    assert result.stderr.endswith("interrupted\n")
    assert comfy.sent("/queue") == [{"delete": [PROMPT_ID]}]
    # A run that only waits is taken out of the queue; /interrupt would stop somebody else's.
    assert comfy.sent("/interrupt") == ([{"prompt_id": PROMPT_ID}] if started else [])


def test_no_server_of_comfyui(workflow, tmp_path, comfy):
    ui = UiBuilder()
    ui.node("Number")
    path = tmp_path / "ui.json"
    path.write_text(json.dumps(ui.json()))
    comfy.object_info = {"Number": None}
    result = run(path, comfy, tmp_path)
    assert result.exit_code == 1
    assert "has no node class 'Number'" in result.stderr


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


def test_without_an_input_folder_nothing_is_uploaded(comfy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.png").write_bytes(b"my picture")
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}}}))
    success(comfy)
    assert run(path, comfy, tmp_path).exit_code == 0
    assert comfy.sent("/upload/image") == []
