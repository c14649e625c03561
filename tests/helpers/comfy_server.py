"""A stand-in for a ComfyUI server on the loopback: the routes and messages that the client uses."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PROMPT_ID = "run-1"
CLOSE = object()
DIE = object()


class FakeComfy:
    """Serves a script: what ``POST /prompt`` answers, which messages follow, what the history holds.

    Attributes:
        object_info: class name → what ``/object_info/<class>`` answers.
        answer: status and body of ``POST /prompt``.
        messages: sent over the websocket after ``POST /prompt``; ``CLOSE`` drops the connection, ``DIE`` ends
            the server.
        queue: ``GET /queue``: ids that run, and ids that wait.
        upload: what ``POST /upload/image`` answers.
        history: ``/history/<id>`` once ``POST /prompt`` came.
        late: that many questions for the history come before it is written.
        files: (type, subfolder, filename) → bytes for ``/view``.
        posted: (path, body) of every POST; JSON bodies are parsed.
    """

    def __init__(self) -> None:
        self.object_info: dict[str, Any] = {}
        self.answer: tuple[int, Any] = (200, {"prompt_id": PROMPT_ID, "number": 1, "node_errors": {}})
        self.messages: list[Any] = []
        self.history: dict[str, Any] = {}
        self.late = 0
        self.queue: dict[str, list[str]] = {"queue_running": [], "queue_pending": []}
        self.upload: Any = {"name": "stored (1).png", "subfolder": "", "type": "input"}
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.posted: list[tuple[str, Any]] = []
        self.clients: list[str] = []
        self._outbox: queue.Queue = queue.Queue()

        class Handler(_Handler):
            fake = self

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> FakeComfy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._outbox.put(CLOSE)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def declare(self, class_type: str, node_class: type) -> None:
        """Serve a V1 class as ComfyUI does."""
        self.object_info[class_type] = {
            "input": node_class.INPUT_TYPES(),
            "output": list(node_class.RETURN_TYPES),
            "output_node": getattr(node_class, "OUTPUT_NODE", False),
            "name": class_type,
        }

    def says(self, kind: str, **data: Any) -> None:
        """Add a message of the run to the script."""
        self.messages.append({"type": kind, "data": {"prompt_id": PROMPT_ID, **data}})

    def asked_for_history(self) -> dict[str, Any]:
        self.late -= 1
        written = self.sent("/prompt") and self.history and self.late < 0
        return {PROMPT_ID: self.history} if written else {}

    def sent(self, path: str) -> list[Any]:
        """Bodies of the POSTs to ``path``."""
        return [body for posted, body in self.posted if posted == path]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeComfy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == "/ws":
            self.fake.clients.append(query["clientId"])
            self._websocket()
        elif parts.path == "/object_info":
            self._json(200, self.fake.object_info)
        elif parts.path.startswith("/object_info/"):
            name = unquote(parts.path.removeprefix("/object_info/"))
            known = self.fake.object_info
            self._json(200, {name: known[name]} if name in known else {})
        elif parts.path.startswith("/history/"):
            self._json(200, self.fake.asked_for_history())
        elif parts.path == "/queue":
            entries = {place: [[0, name, {}] for name in names] for place, names in self.fake.queue.items()}
            self._json(200, entries)
        elif parts.path == "/view":
            key = (query.get("type", ""), query.get("subfolder", ""), query.get("filename", ""))
            if key in self.fake.files:
                self._answer(200, self.fake.files[key], "image/png")
            else:
                self._answer(404, b"", "text/plain")
        else:
            self._json(200, {"exec_info": {"queue_remaining": 0}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_json = self.headers.get("Content-Type") == "application/json"
        self.fake.posted.append((self.path, json.loads(body) if is_json else body))
        if self.path == "/prompt":
            self._json(*self.fake.answer)
            for message in self.fake.messages:
                self.fake._outbox.put(message)
        elif self.path == "/upload/image":
            self._json(200, self.fake.upload)
        else:
            self._answer(200, b"", "text/plain")

    def _json(self, status: int, document: Any) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _websocket(self) -> None:
        """RFC 6455, the server's half: handshake, then the script's messages as they come."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accepted = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accepted)
        self.end_headers()
        self.close_connection = True
        while (message := self.fake._outbox.get()) is not CLOSE:
            if message is DIE:
                self.fake._server.shutdown()
                self.fake._server.server_close()
                return
            is_text = not isinstance(message, bytes)
            payload = json.dumps(message).encode() if is_text else message
            length = len(payload)
            size = bytes([length]) if length < 126 else struct.pack(">BH", 126, length)
            try:
                self.wfile.write(bytes([0x81 if is_text else 0x82]) + size + payload)
            except OSError:
                return
