"""The HTTP side of a ComfyUI server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import Request, urlopen

from ..workflow.errors import WorkflowError
from ..workflow.specs import NodeSpec, spec_of_object_info

TIMEOUT = 30.0  # seconds for one answer of the server
GATEWAY_ERRORS = (502, 503, 504)  # a proxy's, while the server behind it is away


class UnreachableError(WorkflowError):
    """Nobody answers at the server's address."""


class ComfyServer:
    """The HTTP side of a server; also the catalogue of its node classes (`specs.Catalog`).

    Args:
        url: ``http://host:port``, with or without the scheme; a path is kept (a proxy may need it).
    """

    def __init__(self, url: str):
        text = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is none, a half of an IPv6 address
            usable = False
        if not usable:
            raise ValueError(f"--server {url}: expected a server's address, such as http://127.0.0.1:8188.")
        self.url = text.rstrip("/")
        self.client_id = uuid.uuid4().hex
        self._specs: dict[str, NodeSpec | None] = {}

    @property
    def place(self) -> str:
        return f"the server {self.url}"

    @property
    def websocket_url(self) -> str:
        return f"ws{self.url.removeprefix('http')}/ws?{urlencode({'clientId': self.client_id})}"

    def spec(self, class_type: str) -> NodeSpec | None:
        if class_type not in self._specs:
            info = self.get_json(f"/object_info/{quote(class_type, safe='')}").get(class_type)
            self._specs[class_type] = None if info is None else spec_of_object_info(class_type, info)
        return self._specs[class_type]

    def names(self) -> Sequence[str]:
        return list(self.get_json("/object_info"))

    def get_json(self, path: str) -> dict[str, Any]:
        try:
            return self._json(self.request(path))
        except HTTPError as error:
            kind = UnreachableError if error.code in GATEWAY_ERRORS else WorkflowError
            raise kind(
                f"{self.url} answers {path} with HTTP {error.code} {error.reason}; is it a ComfyUI server?"
            ) from None

    def post_json(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._json(self.request(path, json.dumps(body).encode("utf-8")))

    def _json(self, answer: bytes) -> dict[str, Any]:
        try:
            document = json.loads(answer or b"{}")
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise WorkflowError(f"{self.url} does not answer like a ComfyUI server; is the address right?")
        return document

    def request(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """GET, or POST with a body.

        Raises:
            UnreachableError: the server cannot be reached, or breaks off in the middle of its answer.
            HTTPError: it answers with an error status.
        """
        headers = {"Content-Type": kind} if body is not None else {}
        try:
            with urlopen(Request(self.url + path, data=body, headers=headers), timeout=TIMEOUT) as answer:
                return answer.read()
        except HTTPError:
            raise
        except (URLError, TimeoutError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(
                f"the server {self.url} cannot be reached: {reason}. Is ComfyUI running there, and is the "
                "address right?"
            ) from None
