"""Run a workflow on a ComfyUI server: queue it, follow its progress, fetch what it made.

Written after server.py and execution.py of ComfyUI 0.3.64 and 0.8.0: ``POST /prompt``, ``/ws``, ``/history``,
``/view``, ``/queue``, ``/interrupt``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from ..console import warn
from ..progress import StageBars
from ..workflow.errors import WorkflowError, name_node
from ..workflow.graph import Workflow
from .client import TIMEOUT, ComfyServer, UnreachableError
from .events import Follower
from .files import fetch_outputs
from .patience import Patience, ask_patiently, pause

SILENCE = 5.0  # seconds without a message after which the history is asked
RECORDING = 10.0  # seconds that a server may take to write the history of a run that has ended
MOMENT = 0.1  # seconds between questions for that history


def run_on_server(
    workflow: Workflow, server: ComfyServer, *, output: Path, quiet: bool = False
) -> list[Path]:
    """Run a workflow on a server and fetch the files it made.

    Pictures of SaveImage go below ``output``, previews into a temporary folder. Ctrl-C stops the run on the
    server too.

    Raises:
        WorkflowError: the server is away, refuses the workflow, fails in a node (names node and input), or
            does not tell what it made.
    """
    with _connected(server) as socket:
        prompt_id = _queue(workflow, server)
        with StageBars(quiet=quiet) as bars:
            follower = Follower(prompt_id, workflow, bars)
            try:
                _follow(follower, socket, server)
            except KeyboardInterrupt:
                _stop(follower, server)
                raise
    return fetch_outputs(_outputs(prompt_id, server), server, output)


@contextlib.contextmanager
def _connected(server: ComfyServer) -> Iterator[Any]:
    """The websocket; it comes first, so that no message of the run is missed."""
    import websocket

    try:
        socket = websocket.create_connection(server.websocket_url, timeout=TIMEOUT)
    except (websocket.WebSocketException, OSError) as error:
        server.get_json("/prompt")  # where nobody is there, this says so more clearly
        raise WorkflowError(f"{server.url} accepts no websocket connection: {error}.") from None
    try:
        yield socket
    finally:
        socket.close(timeout=0)  # a busy server takes seconds to say goodbye as well


def _queue(workflow: Workflow, server: ComfyServer) -> str:
    body: dict[str, Any] = {"prompt": workflow.to_api(), "client_id": server.client_id}
    if workflow.ui is not None:
        body["extra_data"] = {"extra_pnginfo": {"workflow": workflow.ui}}
    try:
        answer = server.post_json("/prompt", body)
    except HTTPError as error:
        raise WorkflowError(*_refusal(error, workflow, server)) from None
    if "prompt_id" not in answer:
        raise WorkflowError(f"{server.url} does not answer like a ComfyUI server; is the address right?")
    for problem in node_problems(answer.get("node_errors") or {}, workflow):
        warn(f"{problem} The server runs the rest of the workflow.")
    return str(answer["prompt_id"])


def _refusal(error: HTTPError, workflow: Workflow, server: ComfyServer) -> list[str]:
    """The problems in an answer with an error status, one sentence each."""
    try:
        body = json.loads(error.read())
        reason = body["error"]
    except (ValueError, KeyError, TypeError, OSError):
        return [f"{server.url} refused the workflow: HTTP {error.code} {error.reason}."]
    problems = node_problems(body.get("node_errors") or {}, workflow)
    if problems:
        return problems
    if isinstance(reason, dict):
        details = str(reason.get("details") or "")
        reason = f"{reason.get('message', 'no reason given')}{f' ({details})' if details else ''}"
    return [f"{server.url} refused the workflow: {reason}."]


def node_problems(node_errors: Mapping[str, Any], workflow: Workflow) -> list[str]:
    """``node_errors`` of ``POST /prompt`` as sentences: node, input, what is wrong."""
    problems = []
    for node_id, entry in node_errors.items():
        where = (
            workflow.name(node_id)
            if node_id in workflow.nodes
            else name_node(node_id, entry.get("class_type", "?"))
        )
        for error in entry.get("errors") or []:
            name = (error.get("extra_info") or {}).get("input_name")
            details = str(error.get("details") or "")
            message = str(error.get("message") or error.get("type") or "is refused")
            if details and details != name:
                message = f"{message}: {details}"
            problems.append(f"{where}{f', input {name!r}' if name else ''}: {message.rstrip('.')}.")
    return problems


def _follow(follower: Follower, socket: Any, server: ComfyServer) -> None:
    """Read messages until the run is over. A run whose messages stay away is looked up on the server.

    Raises:
        WorkflowError: the run failed, the server is away for long, or it has lost the run.
    """
    import websocket

    socket.settimeout(SILENCE)
    connected, patience = True, Patience()
    while not follower.done:
        try:
            message = socket.recv() if connected else pause()
        except websocket.WebSocketTimeoutException:
            message = None
        except (websocket.WebSocketException, OSError):
            connected, message = False, None
        if message:  # a preview, which is binary, shows as well as a text that the server is there
            patience.answered()
        if isinstance(message, str) and message:
            follower.hear(json.loads(message))
        elif message is None:
            try:
                _look_up(follower, server)
                patience.answered()
            except UnreachableError as error:
                if patience.failed():
                    raise WorkflowError(
                        f"the server {server.url} went away in the middle of the run. If ComfyUI ended "
                        f"there, its console says why; start it again and run the workflow anew. ({error})"
                    ) from None


def _look_up(follower: Follower, server: ComfyServer) -> None:
    """Ask the server what became of the run.

    Raises:
        WorkflowError: it failed, or the server does not know it any more.
    """
    # The history again after the queue: the run may have ended in between.
    found = _record(follower.prompt_id, server)
    if found is None and not _places(follower.prompt_id, server):
        found = _record(follower.prompt_id, server)
        if found is None:
            raise WorkflowError(
                f"the server {server.url} does not know the run any more: somebody took it out of the queue, "
                "or ComfyUI was started anew. Run the workflow again."
            )
    if found is not None:
        follower.hear_history(found)


def _record(prompt_id: str, server: ComfyServer) -> dict[str, Any] | None:
    """The entry of a run in the server's history, None before the run has ended."""
    return server.get_json(f"/history/{prompt_id}").get(prompt_id)


def _outputs(prompt_id: str, server: ComfyServer) -> Mapping[str, Any]:
    """What the nodes of a run that has ended reported.

    Raises:
        WorkflowError: the server's history stays without the run.
    """
    deadline = time.monotonic() + RECORDING
    # ComfyUI tells its clients of the end first, and writes the history after that.
    while (record := ask_patiently(lambda: _record(prompt_id, server))) is None:
        if time.monotonic() > deadline:
            raise WorkflowError(
                f"the server {server.url} says that the run {prompt_id} has ended well, but {RECORDING:g} "
                "seconds later its history still does not tell what the run made; perhaps somebody cleared "
                "it. Nothing is lost: fetch the pictures from the output folder of that ComfyUI."
            )
        time.sleep(MOMENT)
    return record.get("outputs") or {}


def _places(prompt_id: str, server: ComfyServer) -> set[str]:
    """Where a run is: ``queue_running`` or ``queue_pending``, or nowhere."""
    queue = server.get_json("/queue")
    return {
        place
        for place in ("queue_running", "queue_pending")
        if any(prompt_id in entry[:2] for entry in queue.get(place) or [])  # number, id, workflow, …
    }


def _stop(follower: Follower, server: ComfyServer) -> None:
    """Stop the run on the server: out of the queue, or, where it has begun, interrupted."""
    with contextlib.suppress(WorkflowError, HTTPError):
        server.request("/queue", json.dumps({"delete": [follower.prompt_id]}).encode("utf-8"))
        # Older servers interrupt whatever runs, so ask, also because the news of the start may not be here.
        if "queue_running" in _places(follower.prompt_id, server):
            server.request("/interrupt", json.dumps({"prompt_id": follower.prompt_id}).encode("utf-8"))
