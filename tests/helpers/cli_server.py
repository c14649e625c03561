"""``unclip run --server`` on a workflow of two nodes, against the stand-in for ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner
from unclip.cli.app import build_app

from .comfy_server import FakeComfy
from .workflow import Number, Show

API = {
    "1": {"class_type": "Number", "inputs": {"seed": 3, "strength": 0.5, "mode": "plain"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Keep"}},
}
MADE = {"outputs": {"2": {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}}}


@contextmanager
def serving() -> Iterator[FakeComfy]:
    """A server that knows the nodes of the workflow, and has its picture once it ran."""
    with FakeComfy() as fake:
        fake.declare("Number", Number)
        fake.declare("Show", Show)
        fake.history = {**MADE, "status": {"status_str": "success", "messages": []}}
        fake.files["output", "", "a_00001_.png"] = b"a picture"
        yield fake


def write_workflow(folder: Path) -> Path:
    path = folder / "workflow.json"
    path.write_text(json.dumps(API))
    return path


def run(workflow: Path, comfy: FakeComfy, tmp_path: Path, *more: str):
    words = ["run", str(workflow), "--server", comfy.url, "--output", str(tmp_path / "out"), *more]
    return CliRunner().invoke(build_app(), words)


def success(comfy: FakeComfy) -> None:
    comfy.says("execution_start")
    comfy.says("execution_cached", nodes=[])
    comfy.says("executing", node="1")
    comfy.says("progress", node="1", value=1, max=2)
    comfy.messages.append(b"\0\0\0\1 a preview picture")
    comfy.says("progress", node="1", value=2, max=2)
    comfy.says("executed", node="2", output={})
    comfy.says("execution_success")
