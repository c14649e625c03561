"""The scripts that order and describe our workflows in the template browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from ..helpers.sources import ROOT
from ..helpers.translated import is_chinese

WEB = ROOT / "web"
OURS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
# A page with a store like its own: a list made of the names, anew each time, which `$subscribe` tells of.
RUN = """
import { app } from "./scripts/app.js";
import { api } from "./scripts/api.js";
const [language, file] = process.argv.slice(2);
const given = JSON.parse(file);
let told = [];
const store = {
  $subscribe: (callback, { flush }) => { if (flush === "sync") told.push(callback); },
  enhancedTemplates: undefined,
};
app.extensionManager = {
  setting: { get: (id) => (id === "Comfy.Locale" ? language : undefined) },
  ...(language === "old" ? {} : { _p: { _s: new Map([["workflowTemplates", store]]) } }),
};
api.getWorkflowTemplates = async () => given;
await import("./extensions/unclip/unclip_templates.js");
let lists;
for (let time = 0; time < 2; time += 1) {
  lists = await api.getWorkflowTemplates();
  store.enhancedTemplates = Object.entries(lists).flatMap(([sourceModule, names]) =>
    names.map((name) => ({ name, title: name, description: name, sourceModule })));
  for (const callback of told) callback();
}
console.log(JSON.stringify({ lists, templates: store.enhancedTemplates, callbacks: told.length }));
"""


def in_the_page(tmp_path, given: dict[str, list[str]], language: str = "en") -> dict[str, Any]:
    """What the page gets of a server's list, and its own list of templates after that."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js to run the script")
    for name, text in {
        "package.json": '{"type": "module"}',
        "scripts/app.js": "export const app = { registerExtension: (extension) => extension.init() };",
        "scripts/api.js": "export const api = {};",
        **{
            f"extensions/unclip/{path.name}": path.read_text("utf-8")
            for path in WEB.glob("unclip_template*.js")
        },
        "run.js": RUN,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["node", "run.js", language, json.dumps(given)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def described(tmp_path, language: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in in_the_page(tmp_path, {"ours": OURS}, language)["templates"]}


def test_every_shipped_workflow_has_a_place_and_words(tmp_path) -> None:
    found = described(tmp_path, "en")
    assert sorted(found) == OURS and next(iter(found)) == "text_to_image"
    for name, template in found.items():
        words = template["title"].replace(":", " ").split()
        assert "unCLIP" in words and "unCLIP" in template["models"], f"{name}: a search for unclip finds it"
        assert template["description"].endswith(".") and template["tags"]
    assert len({template["title"] for template in found.values()}) == len(OURS)


def test_ours_are_put_in_order_and_others_stay(tmp_path) -> None:
    others = ["z", "text_to_image", "a"]
    found = in_the_page(tmp_path, {"some-folder": [*reversed(OURS), "new"], "another": others})
    ours = found["lists"]["some-folder"]
    assert ours[0] == "text_to_image" and ours[-1] == "new"
    assert ours.index("variations") < ours.index("glide_inpaint")
    assert found["lists"]["another"] == others
    assert found["callbacks"] == 1, "however often the page asks"
    strange = [
        each for each in found["templates"] if each["sourceModule"] == "another" or each["name"] == "new"
    ]
    assert len(strange) == 4 and all(each["title"] == each["name"] for each in strange)


def test_the_first_of_ours_has_a_trace_of_use_and_no_more(tmp_path) -> None:
    used = {name: each["usage"] for name, each in described(tmp_path, "en").items() if "usage" in each}
    assert list(used) == ["text_to_image"] and 0 < used["text_to_image"] < 1


def test_they_are_described_in_the_language_of_the_page(tmp_path) -> None:
    english, chinese = described(tmp_path, "en"), described(tmp_path, "zh")
    for name, template in chinese.items():
        assert is_chinese(template["title"]) and is_chinese(template["description"]), name
        assert (template["models"], template["tags"]) == (english[name]["models"], english[name]["tags"])
    assert described(tmp_path, "fr") == english


def test_older_pages_get_the_order_alone(tmp_path) -> None:
    found = in_the_page(tmp_path, {"ours": list(reversed(OURS))}, "old")
    assert found["lists"]["ours"][0] == "text_to_image"
    assert all(each["title"] == each["name"] for each in found["templates"])
