"""The script that ComfyUI's browser side loads: colours of sockets and wires."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import unclip
from unclip.nodes import sockets

from ..helpers.sources import ROOT

SCRIPT = ROOT / "web" / "unclip.js"
# A socket that takes several types names them all, with commas between.
TYPES = {
    kind
    for name, kind in vars(sockets).items()
    if name.isupper() and isinstance(kind, str) and re.fullmatch(r"UNCLIP_\w+", kind)
}

# The parts of ComfyUI's browser side that the script touches, and what a change of the palette does to them.
STAND_IN = """
class Canvas { default_connection_color_byType = {}; static link_type_colors = { IMAGE: "#123456" }; }
const palette = (own) => {
  const emptied = Object.fromEntries([...TYPES, "IMAGE"].map((type) => [type, ""]));
  for (const colours of [app.canvas.default_connection_color_byType, Canvas.link_type_colors]) {
    Object.assign(colours, emptied, own);
  }
};
const TYPES = JSON.parse(process.argv[2]);
const styles = [];
globalThis.document = {
  createElement: () => ({}),
  head: { append: (element) => styles.push(element.textContent) },
};
export const app = { canvas: new Canvas(), registerExtension: (extension) => (app.extension = extension) };
export const report = () => {
  app.extension.setup();
  palette({});
  const first = { ...Canvas.link_type_colors };
  palette({ UNCLIP_CLIP: "#000001" });
  const own = app.canvas.default_connection_color_byType.UNCLIP_CLIP;
  palette({});
  const last = { ...app.canvas.default_connection_color_byType };
  console.log(JSON.stringify({ first, own, last, style: styles.join("") }));
};
"""
RUN = """
import { report } from "./scripts/app.js";
await import("./extensions/unclip/unclip.js");
report();
"""


def test_comfyui_is_told_where_the_web_files_are() -> None:
    assert (ROOT / unclip.WEB_DIRECTORY).resolve() == SCRIPT.parent.resolve()


def test_every_socket_type_has_a_colour_of_its_own() -> None:
    colours = dict(
        re.findall(r'^  (UNCLIP_\w+): "(#[0-9a-f]{6})",$', SCRIPT.read_text("utf-8"), re.MULTILINE)
    )
    assert set(colours) == TYPES
    assert len(set(colours.values())) == len(colours)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js to run the script")
def test_colours_outlast_a_change_of_the_palette(tmp_path: Path) -> None:
    for name, text in {
        "package.json": '{"type": "module"}',
        "scripts/app.js": STAND_IN,
        "extensions/unclip/unclip.js": SCRIPT.read_text("utf-8"),
        "run.js": RUN,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["node", "run.js", json.dumps(sorted(TYPES))]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["own"] == "#000001"  # a palette that knows the type decides
    assert all(re.fullmatch(r"#[0-9a-f]{6}", found["first"][kind]) for kind in TYPES)
    assert {kind: found["last"][kind] for kind in TYPES} == {kind: found["first"][kind] for kind in TYPES}
    assert found["first"]["IMAGE"] == ""  # what is not ours is as ComfyUI has it
    assert all(f"--color-datatype-{kind}: {found['first'][kind]};" in found["style"] for kind in TYPES)
