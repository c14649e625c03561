"""The script that orders our workflows in the template browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from ..helpers.sources import ROOT

SCRIPT = ROOT / "web" / "unclip_templates.js"
OURS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
RUN = """
import { api } from "./scripts/api.js";
const given = JSON.parse(process.argv[2]);
api.getWorkflowTemplates = async () => given;
await import("./extensions/unclip/unclip_templates.js");
console.log(JSON.stringify(await api.getWorkflowTemplates()));
"""


def listed(tmp_path, given: dict[str, list[str]]) -> dict[str, list[str]]:
    """What the page gets of a server's list."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js to run the script")
    for name, text in {
        "package.json": '{"type": "module"}',
        "scripts/app.js": "export const app = { registerExtension: (extension) => extension.init() };",
        "scripts/api.js": "export const api = {};",
        "extensions/unclip/unclip_templates.js": SCRIPT.read_text("utf-8"),
        "run.js": RUN,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    run = subprocess.run(
        ["node", "run.js", json.dumps(given)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def test_every_shipped_workflow_has_a_place() -> None:
    names = re.findall(r'^  "(\w+)",$', SCRIPT.read_text("utf-8"), re.MULTILINE)
    assert sorted(names) == OURS and names[0] == "text_to_image"


def test_ours_are_put_in_order_and_others_stay(tmp_path) -> None:
    others = ["z", "text_to_image", "a"]
    found = listed(tmp_path, {"some-folder": [*reversed(OURS), "new"], "another": others})
    assert found["some-folder"][0] == "text_to_image" and found["some-folder"][-1] == "new"
    assert found["some-folder"].index("variations") < found["some-folder"].index("glide_inpaint")
    assert found["another"] == others
