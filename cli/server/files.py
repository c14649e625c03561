"""Files between this machine and a ComfyUI server: input pictures up, results down."""

from __future__ import annotations

import json
import mimetypes
import tempfile
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from ...core.writing import written_whole
from ..workflow.errors import WorkflowError
from ..workflow.graph import Workflow
from ..workflow.overrides import set_input
from ..workflow.specs import required_spec
from .client import ComfyServer
from .patience import ask_patiently

LOADERS = frozenset({"LoadImage", "LoadImageMask"})


def upload_pictures(workflow: Workflow, server: ComfyServer, folder: Path) -> Workflow:
    """Upload the pictures in ``folder`` that the workflow's load nodes name; names that ``folder`` lacks are
    left to the server.

    Raises:
        WorkflowError: the server refuses a picture.
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--input {folder}: there is no such folder.")
    root = folder.resolve()
    for node_id, node in workflow.nodes.items():
        name = node.inputs.get("image")
        if node.class_type not in LOADERS or not isinstance(name, str):
            continue
        path = (root / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            continue
        stored = _upload(path, server, workflow.name(node_id))
        spec = required_spec(workflow.name(node_id), node.class_type, server)
        workflow = set_input(workflow, node_id, spec, "image", stored)
    return workflow


def _upload(path: Path, server: ComfyServer, node: str) -> str:
    """Upload one picture; returns the name under which the server keeps it."""
    boundary = uuid.uuid4().hex
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    filename = path.name.replace('"', "_")
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n'
        f"Content-Type: {kind}\r\n\r\n"
    )
    body = head.encode("utf-8") + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    try:
        answer = json.loads(
            server.request("/upload/image", body, kind=f"multipart/form-data; boundary={boundary}")
        )
        subfolder = answer.get("subfolder")
        return f"{subfolder}/{answer['name']}" if subfolder else str(answer["name"])
    except (ValueError, KeyError, AttributeError):
        raise WorkflowError(
            f"{node}, input 'image': {server.url} does not answer the upload of {path.name!r} like a ComfyUI "
            "server; is the address right?"
        ) from None
    except HTTPError as error:
        raise WorkflowError(
            f"{node}, input 'image': the server refuses {path.name!r}: HTTP {error.code} {error.reason}."
        ) from None


def fetch_outputs(outputs: Mapping[str, Any], server: ComfyServer, output: Path) -> list[Path]:
    """Download every file that the nodes reported, and return their paths here.

    Results go below ``output``, in the server's sub-folders; previews into a temporary folder. A name that is
    taken gets a number.

    Args:
        outputs: of the run's entry in ``/history``: node id → ``{"images": [{"filename", "subfolder", …}]}``.
    """
    temporary: Path | None = None
    fetched = []
    for node_id, report in outputs.items():
        for entry in _files(report):
            folder = output
            if entry.get("type") == "temp":
                temporary = temporary or Path(tempfile.mkdtemp(prefix="unclip-preview-"))
                folder = temporary
            query = urlencode({key: entry.get(key) or "" for key in ("filename", "subfolder", "type")})
            try:
                data = ask_patiently(partial(server.request, f"/view?{query}"))
            except HTTPError as error:
                raise WorkflowError(
                    f"node {node_id}: the server made {entry['filename']!r}, but does not hand it out: "
                    f"HTTP {error.code} {error.reason}."
                ) from None
            fetched.append(_write(data, _target(folder.resolve(), entry)))
    return fetched


def _files(report: Any) -> list[Mapping[str, Any]]:
    """The files in what a node reported; nodes report under several names (images, gifs, audio)."""
    lists = report.values() if isinstance(report, Mapping) else []
    entries = [entry for listed in lists if isinstance(listed, list) for entry in listed]
    return [entry for entry in entries if isinstance(entry, Mapping) and entry.get("filename")]


def _target(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Where a fetched file goes: a name that is free, below ``folder`` whatever the server says."""
    name = f"{entry.get('subfolder') or ''}/{entry['filename']}".replace("\\", "/").lstrip("/")
    path = folder.joinpath(*PurePosixPath(name).parts).resolve()
    if path == folder or not path.is_relative_to(folder):
        raise WorkflowError(f"the server reported the file name {name!r}, which leads out of {folder}.")
    free, number = path, 2
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free


def _write(data: bytes, path: Path) -> Path:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(data)
    return path
