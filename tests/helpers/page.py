"""A stand-in for ComfyUI's page, in which Node.js runs the scripts of ``web``."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .sources import ROOT

WEB = ROOT / "web"
APP = "export const app = { registerExtension: (extension) => (app.extension = extension) };"
API = "export const api = {};"


def in_page(folder: Path, run: str, *arguments: str, app: str = APP, api: str = API) -> Any:
    """What a script prints, as JSON, that finds our files where the page has them. Skips without Node.js.

    Args:
        folder: an empty one for all of it; files beside ``run`` are found by their names.
        run: the script; it imports ``./scripts/app.js``, ``./scripts/api.js`` and ``./extensions/unclip/…``.
        arguments: process.argv from its third on.
        app, api: the modules of the page.
    """
    if shutil.which("node") is None:
        pytest.skip("no Node.js to run the script")
    ours = [*WEB.glob("unclip*.js"), *WEB.glob("*_zh.json")]
    for name, text in {
        "package.json": '{"type": "module"}',
        "scripts/app.js": app,
        "scripts/api.js": api,
        **{f"extensions/unclip/{path.name}": path.read_text("utf-8") for path in ours},
        "run.js": run,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    command = ["node", "run.js", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
