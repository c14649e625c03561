"""The script that tells of public models which an opened workflow names and which are not there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..helpers.sources import ROOT

RUN = """
import { app } from "./scripts/app.js";
const told = [];
app.extensionManager = { toast: { add: (message) => told.push(message) } };
let extension;
app.registerExtension = (each) => (extension = each);
await import("./extensions/unclip/unclip_missing.js");
const pair = { prior: "get prior, and small", decoder: "get prior, decoder" };
const unclip_sources = { karlo: "get it there", ...pair };
const bundle = [["mini"], { unclip_sources }];
const declared = { input: { required: { bundle }, optional: { with_bundle: bundle } } };
class Loader {
  static nodeData = declared;
  constructor(value) {
    const [first, second] = String(value).split("+");
    const other = { name: "with_bundle", value: second ?? "none" };
    this.widgets = [{ name: "bundle", value: second ? first : value }, other];
  }
}
class Other { constructor() { this.widgets = [{ name: "bundle", value: "karlo" }]; } }
const now = Date.now;
app.loadGraphData = async (values, clean, view, workflow, { mode }) => {
  for (const value of values) extension.loadedGraphNode(Object.assign(new Loader(value), { mode }));
  extension.loadedGraphNode(new Other());
  extension.loadedGraphNode({});
};
extension.init();
for (const [after, values, options] of JSON.parse(process.argv[2])) {
  Date.now = () => now() + 1000 * after;
  await app.loadGraphData(values, true, true, null, options ?? {});
  await new Promise((resolve) => setTimeout(resolve, 5));
}
console.log(JSON.stringify(told));
"""


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["mini", "nobody", 3], []),
        (["karlo"], ["karlo: get it there"]),
        (["karlo/prior", "karlo/prior", "mini"], ["karlo/prior: get it there"]),
        (["karlo/prior", "karlo", "mini"], ["karlo/prior, karlo: get it there"]),
        # The download of a decoder brings its prior; of two that belong to nobody each is told.
        (["prior+none"], ["prior: get prior, and small"]),
        (["prior+decoder"], ["prior, decoder: get prior, decoder"]),
        (["x/prior+decoder", "mini+decoder"], ["decoder: get prior, decoder"]),
        (["prior+karlo"], ["prior: get prior, and small", "karlo: get it there"]),
    ],
)
def test_what_is_missing_is_told_once(tmp_path, values, texts) -> None:
    told = tell(tmp_path, [(0, values)])
    assert [message["detail"] for message in told] == texts
    assert all(message["severity"] == "warn" for message in told)


def test_the_next_workflow_does_not_repeat_what_is_still_in_sight(tmp_path) -> None:
    (first, *others) = tell(tmp_path, [(0, ["karlo"]), (5, ["karlo"]), (6, ["karlo/prior"])])
    assert [first["detail"], *(each["detail"] for each in others)] == [
        "karlo: get it there",
        "karlo/prior: get it there",
    ]
    gone = first["life"] / 1000 + 1
    assert len(tell(tmp_path, [(0, ["karlo"]), (gone, ["karlo"])])) == 2


@pytest.mark.parametrize("options", [{"silentAssetErrors": True}, {"mode": 2}, {"mode": 4}])
def test_undo_and_nodes_that_do_not_run_tell_nothing(tmp_path, options) -> None:
    assert tell(tmp_path, [(0, ["karlo"], options)]) == []
    assert len(tell(tmp_path, [(0, ["prior"], options), (1, ["karlo"])])) == 1


def tell(folder: Path, workflows: list[tuple]) -> list[dict[str, Any]]:
    """The messages when workflows with these values are opened, each after so many seconds, with options."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js to run the script")
    for name, text in {
        "package.json": '{"type": "module"}',
        "scripts/app.js": "export const app = {};",
        "extensions/unclip/unclip_missing.js": (ROOT / "web" / "unclip_missing.js").read_text("utf-8"),
        "run.js": RUN,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    command = ["node", "run.js", json.dumps(workflows)]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
