"""``unclip run --server`` where something is wrong: with the workflow, the server, or the way to it."""

from __future__ import annotations

import json
import socket
import time
from email.message import Message
from http.client import IncompleteRead
from unittest.mock import Mock
from urllib.error import HTTPError

import pytest
import websocket
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.cli.server import client as client_module
from unclip.cli.server import patience as patience_module
from unclip.cli.server import remote_run as server_module
from unclip.cli.server.client import ComfyServer, UnreachableError
from unclip.cli.workflow.errors import WorkflowError

from ..helpers.cli_server import run, serving, success, write_workflow
from ..helpers.comfy_server import CLOSE, DIE, PROMPT_ID
from ..helpers.workflow import UiBuilder


@pytest.fixture
def comfy():
    with serving() as fake:
        yield fake


@pytest.fixture
def workflow(tmp_path):
    return write_workflow(tmp_path)


def test_nobody_there(workflow, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = CliRunner().invoke(build_app(), ["run", str(workflow), "--server", f"127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"the server http://127.0.0.1:{port} cannot be reached: ")
    assert "Is ComfyUI running there" in result.stderr


@pytest.mark.parametrize("url", ["ftp://host", "http://", "", "host:99999", "host:port", "[::1"])
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
    monkeypatch.setattr(patience_module, "PAUSE", 0.01)
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
    # Whether it runs is asked: the news of its start may not have come yet.
    comfy.queue["queue_running" if started else "queue_pending"] = [PROMPT_ID]
    comfy.says("status")
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 130
    assert result.stderr.endswith("interrupted\n")
    assert comfy.sent("/queue") == [{"delete": [PROMPT_ID]}]
    # A run that only waits is taken out of the queue; /interrupt would stop somebody else's.
    assert comfy.sent("/interrupt") == ([{"prompt_id": PROMPT_ID}] if started else [])


def test_a_server_that_dies_in_the_middle(comfy, workflow, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "SILENCE", 0.05)
    monkeypatch.setattr(patience_module, "PAUSE", 0.05)
    monkeypatch.setattr(patience_module, "PATIENCE", 0.05)
    comfy.says("execution_start")
    comfy.says("progress", node="1", value=1, max=2)
    comfy.messages.append(DIE)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"the server {comfy.url} went away in the middle of the run. If ComfyUI ended")
    assert "cannot be reached" in last


def away(monkeypatch, path, times, answer=None):
    """The server fails at the first requests that begin with ``path``; gives those that it failed at."""
    request, failed = ComfyServer.request, []

    def unsteady(self, asked, *more, **options):
        if asked.startswith(path) and len(failed) < times:
            failed.append(asked)
            raise answer or UnreachableError("a moment")
        return request(self, asked, *more, **options)

    monkeypatch.setattr(patience_module, "PAUSE", 0.01)
    monkeypatch.setattr(ComfyServer, "request", unsteady)
    return failed


@pytest.mark.parametrize("answer", [None, HTTPError("http://h", 502, "Bad Gateway", Message(), None)])
def test_a_server_may_be_away_for_a_moment(comfy, workflow, tmp_path, monkeypatch, answer):
    failed = away(monkeypatch, "/history", 3, answer)
    comfy.messages.append(CLOSE)
    assert run(workflow, comfy, tmp_path).exit_code == 0
    assert len(failed) == 3


@pytest.mark.parametrize("said", [b"\0\0\0\1 a preview picture", '{"type": "progress"}'])
def test_patience_begins_at_the_first_failure_after_the_messages(monkeypatch, said):
    """A dropped socket and one refusal are no end, however long nobody had to ask before."""
    monkeypatch.setattr(patience_module, "PAUSE", 0.01)
    monkeypatch.setattr(patience_module, "PATIENCE", 0.1)
    monkeypatch.setattr(server_module, "SILENCE", 0.01)
    follower, failures = Mock(done=False), [UnreachableError("refused"), None]

    def look_up(*_):
        failure = failures.pop(0)
        if failure is not None:
            raise failure
        follower.done = True

    def recv():
        time.sleep(0.2)
        if not said_so_far:
            raise ConnectionResetError
        return said_so_far.pop()

    said_so_far = [said, said]
    monkeypatch.setattr(server_module, "_look_up", look_up)
    server_module._follow(follower, Mock(recv=recv), Mock())
    assert not failures and not said_so_far


def test_failures_that_messages_part_are_not_added_up(monkeypatch):
    monkeypatch.setattr(patience_module, "PATIENCE", 0.1)
    follower, said = Mock(done=False), [None, b"preview", None, b"preview", None, "{}"]

    def recv():
        time.sleep(0.06)
        message = said.pop(0)
        follower.done = not said
        if message is None:
            raise websocket.WebSocketTimeoutException
        return message

    monkeypatch.setattr(server_module, "_look_up", Mock(side_effect=UnreachableError("busy")))
    server_module._follow(follower, Mock(recv=recv), Mock())
    assert not said


@pytest.mark.parametrize("path", ["/history", "/view"])
def test_results_are_fetched_from_a_server_that_is_away_for_a_moment(
    comfy, workflow, tmp_path, monkeypatch, path
):
    failed = away(monkeypatch, path, 2)
    success(comfy)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 0, result.stderr
    assert len(failed) == 2 and (tmp_path / "out" / "a_00001_.png").read_bytes() == b"a picture"


def test_results_of_a_server_that_stays_away(comfy, workflow, tmp_path, monkeypatch):
    monkeypatch.setattr(patience_module, "PATIENCE", 0.05)
    away(monkeypatch, "/view", 1000)
    success(comfy)
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1 and result.stderr.endswith("a moment\n")


def test_a_run_that_the_server_has_lost(comfy, workflow, tmp_path, monkeypatch):
    """Started anew, or taken out of the queue by somebody: no message tells of it."""
    monkeypatch.setattr(server_module, "SILENCE", 0.05)
    comfy.history = {}
    result = run(workflow, comfy, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"the server {comfy.url} does not know the run any more: somebody took")


@pytest.mark.parametrize("place", ["queue_running", "queue_pending"])
def test_a_run_that_waits_or_works_in_silence_is_waited_for(comfy, workflow, tmp_path, monkeypatch, place):
    monkeypatch.setattr(server_module, "SILENCE", 0.02)
    asked, done = [], comfy.history
    comfy.history, comfy.queue[place] = {}, [PROMPT_ID]
    places = server_module._places

    def seen(*given):
        asked.append(given)
        if len(asked) == 4:
            comfy.history = done
        return places(*given)

    monkeypatch.setattr(server_module, "_places", seen)
    assert run(workflow, comfy, tmp_path).exit_code == 0
    assert len(asked) == 4


def test_an_answer_that_breaks_off(monkeypatch):
    def broken(*_, **__):
        raise IncompleteRead(b"half")

    monkeypatch.setattr(client_module, "urlopen", broken)
    with pytest.raises(WorkflowError, match=r"the server http://host:1 cannot be reached: IncompleteRead"):
        ComfyServer("host:1").request("/view")


def test_no_server_of_comfyui(workflow, tmp_path, comfy):
    ui = UiBuilder()
    ui.node("Number")
    path = tmp_path / "ui.json"
    path.write_text(json.dumps(ui.json()))
    comfy.object_info = {"Number": None}
    result = run(path, comfy, tmp_path)
    assert result.exit_code == 1
    assert "has no node class 'Number'" in result.stderr
