"""The script that tells of public models which an opened workflow names and which are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..helpers.page import in_page

# process.argv: what is done in turn, each "open" with values and options of the workflow, "undo" with values,
# or "refresh" with the first parts of the names that are still missing; then the language of the page.
RUN = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
const [steps, language] = process.argv.slice(2);
globalThis.fetch = async (url) => ({ ok: true, json: async () => JSON.parse(readFileSync(url, "utf-8")) });
const told = [];
let sight = [];
app.extensionManager = {
  setting: { get: (id) => (id === "Comfy.Locale" ? language : undefined) },
  toast: {
    add: (message) => (told.push(message), sight.push(message)),
    remove: (message) => (sight = sight.filter((each) => each !== message)),
  },
};
let extension;
app.registerExtension = (each) => { (extension = each).init?.(); };
const others = { size: "1 GB", licence: "MIT", command: "", parts: [["a", "b"], ["c", ""]] };
const source = (text) => ({ text, facts: { title: text, ...others } });
const pair = { prior: source("get prior, and small"), decoder: source("get prior, decoder") };
const unclip_sources = { karlo: source("get it there"), ...pair };
const declare = (unclip_sources) => {
  const bundle = [["mini"], { unclip_sources }];
  return { input: { required: { bundle, seed: ["INT"] }, optional: { with_bundle: bundle } } };
};
class Loader {
  static nodeData = declare(unclip_sources);
  constructor(value) {
    const [first, second] = String(value).split("+");
    const other = { name: "with_bundle", value: second ?? "none" };
    this.widgets = [{ name: "bundle", value: second ? first : value }, other];
  }
}
class Other { constructor() { this.widgets = [{ name: "bundle", value: "karlo" }]; } }
app.loadGraphData = async (values, clean, view, workflow, options) => {
  const loaders = values.map((value) => Object.assign(new Loader(value), { mode: options?.mode }));
  for (const node of [...loaders, new Other()]) extension.loadedGraphNode(node);
  extension.loadedGraphNode({});
};
await import("./extensions/unclip/unclip_missing.js");
const seen = [];
for (const [kind, values, options] of JSON.parse(steps)) {
  if (kind === "refresh") {
    const left = Object.fromEntries(values.map((name) => [name, unclip_sources[name]]));
    await extension.refreshComboInNodes({ Loader: declare(left), Other: {} });
  } else await app.loadGraphData(values, kind === "open", true, null, options);
  await new Promise((resolve) => setTimeout(resolve, 50));
  seen.push(sight.map((message) => message.detail));
}
console.log(JSON.stringify({ told, seen }));
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
    told = in_turn(tmp_path, [("open", values)])["told"]
    assert [message["detail"] for message in told] == texts
    assert all(message["severity"] == "warn" and "life" not in message for message in told)


def test_what_is_told_is_of_the_workflow_that_is_open(tmp_path) -> None:
    steps = [("open", ["karlo"]), ("open", ["karlo/prior"]), ("undo", ["karlo/prior"]), ("open", ["mini"])]
    first, second = ["karlo: get it there"], ["karlo/prior: get it there"]
    found = in_turn(tmp_path, steps)
    assert found["seen"] == [first, second, second, []]
    assert len(found["told"]) == 2


def test_a_model_that_came_is_not_called_missing(tmp_path) -> None:
    steps = [("open", ["prior+karlo"]), ("refresh", ["prior", "karlo"]), ("refresh", ["karlo"])]
    both = ["prior: get prior, and small", "karlo: get it there"]
    assert in_turn(tmp_path, steps)["seen"] == [both, both, both[1:]]


@pytest.mark.parametrize("first", [("undo", ["karlo"]), ("open", ["karlo"], {"mode": 2})])
def test_undo_and_nodes_that_do_not_run_tell_nothing(tmp_path, first) -> None:
    assert in_turn(tmp_path, [first])["told"] == []
    assert len(in_turn(tmp_path, [first, ("open", ["karlo"])])["told"]) == 1
    assert in_turn(tmp_path, [("open", ["karlo"], {"mode": 4})])["told"] == []


def test_a_chinese_page_tells_it_in_chinese(tmp_path) -> None:
    (message,) = in_turn(tmp_path, [("open", ["karlo", "karlo/prior"])], "zh")["told"]
    about, how = "这是 get it there（1 GB，许可：MIT）。", "下载方法：a 放进 b；c。然后按 R 刷新节点定义。"
    assert message["detail"] == f"karlo, karlo/prior：{about}{how}"


def in_turn(folder: Path, steps: list[tuple], language: str = "en") -> dict[str, Any]:
    """All messages, and the texts that are in sight after each step."""
    return in_page(folder, RUN, json.dumps(steps), language)
