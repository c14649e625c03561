"""A real ComfyUI server for tests: started from a checkout, asked over HTTP, watched over its websocket."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import websocket
from PIL import Image

PACK = Path(__file__).resolve().parents[2]

START_TIMEOUT = 600  # seconds; ten are enough on an idle machine
RUN_TIMEOUT = 300
PREVIEW_EVENT = 1  # server.py, BinaryEventTypes.PREVIEW_IMAGE: event, format, then a JPEG or PNG


class ServerError(RuntimeError):
    """ComfyUI did not start, or answered with an error; ``answer`` holds the JSON it sent, if any."""

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer


@dataclass
class Run:
    """What happened to one prompt.

    Attributes:
        messages: the websocket's JSON messages, in order.
        previews: the pictures it sent in between, with the time of arrival.
        outputs: what /history says at the end, by node id.
    """

    prompt_id: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message["data"] for message in self.messages if message["type"] == kind]

    @property
    def kinds(self) -> list[str]:
        return [message["type"] for message in self.messages]

    def progress(self, node: str) -> list[tuple[int, int]]:
        """(done, total) of every progress message of a node."""
        return [(data["value"], data["max"]) for data in self.of("progress") if data["node"] == node]


def counts_up(counted: Sequence[tuple[int, int]], total: int) -> bool:
    """Whether progress goes from 0 to its total; newer servers leave out steps that have no picture."""
    steps = [step for step, _ in counted]
    ends = bool(steps) and steps[0] == 0 and steps[-1] == total
    return ends and steps == sorted(set(steps)) and {of for _, of in counted} == {total}


class ComfyServer:
    """A running server. Use :func:`running` to start one."""

    def __init__(self, address: str, log: Path, process: subprocess.Popen) -> None:
        self.address = address
        self.log = log
        self.process = process

    def get(self, path: str, **query: str) -> bytes:
        return self._ask(path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, content: Any) -> Any:
        answer = self._ask(path, json.dumps(content).encode())
        return json.loads(answer) if answer.strip() else None

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                answer = json.loads(text)
            except ValueError:
                answer = None
            raise ServerError(f"{path}: {error.code} {text[:500]}", answer) from None

    def run(self, prompt: Mapping[str, Any], watch: Callable[[Run, ComfyServer], None] | None = None) -> Run:
        """Queue a prompt in the API form and follow it to its end.

        Args:
            watch: called after every message and preview.
        """
        client = uuid.uuid4().hex
        connection = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={client}", timeout=RUN_TIMEOUT
        )
        with contextlib.closing(connection):
            queued = self.post("/prompt", {"prompt": prompt, "client_id": client})
            if queued["node_errors"]:
                raise ServerError("the prompt was queued with errors", queued)
            run = Run(queued["prompt_id"])
            ends = ("execution_success", "execution_error", "execution_interrupted")
            while not run.messages or run.messages[-1]["type"] not in ends:
                received = connection.recv()
                if isinstance(received, str):
                    message = json.loads(received)
                    if message["data"].get("prompt_id") == run.prompt_id:
                        run.messages.append(message)
                elif int.from_bytes(received[:4], "big") == PREVIEW_EVENT:
                    run.previews.append(Image.open(io.BytesIO(received[8:])))
                if watch is not None:
                    watch(run, self)
        run.outputs = self._history(run.prompt_id)
        return run

    def newer(self, known: Collection[str]) -> Run:
        """The first prompt that ends and is not one of those known, which somebody else has queued."""
        deadline = time.monotonic() + RUN_TIMEOUT
        while time.monotonic() < deadline:
            for prompt_id, entry in self.get_json("/history").items():
                if prompt_id not in known:
                    return Run(prompt_id, outputs=entry["outputs"])
            time.sleep(0.1)
        raise ServerError("no other prompt has ended")

    def run_many(
        self, prompts: Iterable[Mapping[str, Any]], done: Callable[[], object], at_once: int = 20
    ) -> None:
        """Run prompts in the API form, ``at_once`` of them in the queue; ``done`` is called after each."""
        client = uuid.uuid4().hex
        url = f"ws://{self.address}/ws?clientId={client}"
        waiting, coming = 0, iter(prompts)
        with contextlib.closing(websocket.create_connection(url, timeout=RUN_TIMEOUT)) as connection:
            while True:
                for prompt in itertools.islice(coming, at_once - waiting):
                    assert not self.post("/prompt", {"prompt": prompt, "client_id": client})["node_errors"]
                    waiting += 1
                if not waiting:
                    return
                received = connection.recv()
                if isinstance(received, str):
                    kind = json.loads(received)["type"]
                    assert kind not in ("execution_error", "execution_interrupted"), received
                    if kind == "execution_success":
                        waiting -= 1
                        done()

    def _history(self, prompt_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 10  # written just after the last message
        while time.monotonic() < deadline:
            entry = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry["outputs"]
            time.sleep(0.05)
        raise ServerError(f"prompt {prompt_id} is not in the history")

    def pictures(self, run: Run, node: str | None = None) -> list[np.ndarray]:
        """The pictures that a prompt, or one node of it, saved; [H, W, 3] uint8."""
        return [np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in self.files(run, node)]

    def film(self, run: Run, node: str) -> tuple[list[np.ndarray], float]:
        """The pictures of the one video that a node saved, [H, W, 3] uint8, and how many a second."""
        import av  # where ComfyUI is, it is too

        (content,) = self.files(run, node)
        with av.open(io.BytesIO(content)) as video:
            rate = float(video.streams.video[0].average_rate)
            return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)], rate

    def files(self, run: Run, node: str | None = None) -> list[bytes]:
        """The files that a prompt, or one node of it, saved, as they are."""
        outputs = run.outputs.values() if node is None else [run.outputs[node]]
        return [self.get("/view", **file) for output in outputs for file in output.get("images", [])]


@contextlib.contextmanager
def running(checkout: Path, python: str, base: Path, environment: Mapping[str, str]) -> Iterator[ComfyServer]:
    """Start ComfyUI on the CPU with its folders (custom_nodes, models, …) below ``base``; stop it after."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    log = base / "server.log"
    command = [python, str(checkout / "main.py"), "--cpu", "--disable-api-nodes", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=base, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        server = ComfyServer(f"127.0.0.1:{port}", log, process)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(server: ComfyServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError, ServerError):
            server.get("/system_stats")
            return
        time.sleep(0.5)
    raise ServerError(f"ComfyUI did not start:\n{server.log.read_text(errors='replace')[-4000:]}")
