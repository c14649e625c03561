"""A server on this machine that speaks Hugging Face's protocol for models, and can misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by name, each a folder.

    Attributes:
        requests: path and Range of every file that was asked for.
        drop: path → bytes after which the connection ends, once.
        spoilt: path → what is sent instead.
        refuse: path → status that is answered, once.
        ranges: whether the server continues where it is asked to.
        md5: whether it tells the MD5 of the whole file, as Azure does.
    """

    repositories: dict[str, Path]
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    drop: dict[str, int] = field(default_factory=dict)
    spoilt: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    md5: bool = False

    def listing(self, name: str) -> dict:
        folder = self.repositories[name]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [_sibling(path, path.relative_to(folder).as_posix()) for path in files]
        return {
            "id": name,
            "modelId": name,
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }


def _sibling(path: Path, name: str) -> dict:
    data = path.read_bytes()
    entry = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(b"pointer").hexdigest()}
    if path.suffix in (".safetensors", ".pth"):
        digest = hashlib.sha256(data).hexdigest()
        return {**entry, "lfs": {"size": len(data), "sha256": digest, "pointerSize": 134}}
    return {**entry, "blobId": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()}


@contextmanager
def hub_server(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/"):
                name = path.removeprefix("/api/models/").partition("/revision/")[0]
                if name not in hub.repositories:
                    self.answer(404, b'{"error": "Repository not found"}')
                else:
                    self.answer(200, json.dumps(hub.listing(name)).encode())
                return
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            commit, _, file = rest.partition("/")
            assert commit == COMMIT, "files of one commit, the one that was listed"
            self.send_file(file, hub.repositories[name] / file)

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def send_file(self, name: str, path: Path) -> None:
            asked = self.headers.get("Range")
            hub.requests.append((name, asked))
            if name in hub.refuse:
                self.answer(hub.refuse.pop(name), b"")
                return
            data = hub.spoilt.get(name, path.read_bytes())
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
            if start and start >= len(data):
                self.answer(416, b"")
                return
            part = data[start:]
            self.send_response(206 if start else 200)
            if hub.md5:
                digest = base64.b64encode(hashlib.md5(data).digest()).decode()
                self.send_header("x-ms-blob-content-md5" if start else "Content-MD5", digest)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: hub.drop.pop(name, len(part))])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
