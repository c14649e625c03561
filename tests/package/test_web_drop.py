"""The script that takes dropped embedding files, with a stand-in for ComfyUI's page."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.files.safetensors_io import write_tensor_file
from unclip.core.formats.native.embedding_file import METADATA_KEY, save_embedding
from unclip.nodes import embedding_files

from ..helpers.bundle import DIM, tiny_bundle
from ..helpers.page import in_page
from ..helpers.sources import ROOT

SCRIPT = ROOT / "web" / "unclip_drop.js"

APP = """
export const seen = { passed: [], toasts: [], added: [] };
export const widget = () => ({ name: "file", value: "none yet", options: { values: ["none yet"] } });
globalThis.window = { addEventListener: (kind, heard) => (window[kind] = heard) };
export const fresh = { comfyClass: "UnCLIPLoadEmbedding", widgets: [widget()] };
globalThis.LiteGraph = { createNode: (type) => (type === fresh.comfyClass ? fresh : null) };
export const app = {
  registerExtension: (extension) => (app.extension = extension),
  handleFile: async (file, ...others) => seen.passed.push([file.name, ...others]),
  graph: { add: () => seen.added.push("whole workflow") },
  canvas: {
    convertEventToCanvasOffset: (event) => event.at,
    graph: { add: () => seen.added.push("open subgraph") },
  },
  extensionManager: { toast: { add: (message) => seen.toasts.push(message.detail) } },
};
"""
API = """
export const api = {
  refuse: false,
  fetchApi: async (path, { method, body }) => {
    if (api.refuse) return { status: 500 };
    if (path !== "/upload/image" || method !== "POST") throw new Error(path);
    const name = body.get("image").name;
    return { status: 200, json: async () => ({ name, subfolder: body.get("subfolder"), type: "input" }) };
  },
};
"""
RUN = """
import { readFileSync } from "node:fs";
import { app, fresh, seen, widget } from "./scripts/app.js";
import { api } from "./scripts/api.js";
await import("./extensions/unclip/unclip_drop.js");
const file = (name) => new File([readFileSync(name)], name);
const dropped = (...names) => ({ dataTransfer: { files: names.map(file), items: [{ kind: "file" }] } });
const node = { comfyClass: fresh.comfyClass, widgets: [widget()] };
const other = { comfyClass: "LoadImage" };
for (const each of [node, other]) app.extension.nodeCreated(each);
app.extension.setup();
const report = { other: "onDragDrop" in other, over: node.onDragOver(dropped("saved.safetensors")) };
report.taken = await node.onDragDrop(dropped("flow.json", "saved.safetensors"));
report.node = node.widgets[0];
report.left = await node.onDragDrop(dropped("flow.json"));
report.foreign = [await node.onDragDrop(dropped("foreign.safetensors")), node.widgets[0].value];
for (const name of ["foreign.safetensors", "broken.safetensors", "flow.json"])
  await app.handleFile(file(name), "file_drop");
window.drop({ at: [30, 40] });
await app.handleFile(file("saved.safetensors"), "file_drop");
report.fresh = { value: fresh.widgets[0].value, pos: fresh.pos };
const told = [];
const options = { onNodeCreated: (node) => told.push(node === fresh) };
await app.handleFile(file("saved.safetensors"), "file_drop", options);
report.second = { told, pos: fresh.pos };
fresh.pos = "as the page has it";
await app.handleFile(file("saved.safetensors"), "file_button");
report.opened = fresh.pos;
api.refuse = true;
await node.onDragDrop(dropped("saved.safetensors"));
console.log(JSON.stringify({ ...report, ...seen }));
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What happened to the files that were dropped."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "flow.json").write_text("{}", encoding="utf-8")
    (folder / "broken.safetensors").write_text("x", encoding="utf-8")
    space = tiny_bundle(upsamplers=0).clip.space
    save_embedding(Embedding(torch.zeros(1, DIM), space), folder / "saved.safetensors")
    write_tensor_file(folder / "foreign.safetensors", {"weight": torch.zeros(2)}, {"format": "pt"}, None)
    return in_page(folder, RUN, app=APP, api=API)


NAME = f"{embedding_files.SAVED_FOLDER}/saved.safetensors [input]"


def test_an_embedding_dropped_on_the_node_is_chosen(found) -> None:
    assert found["over"] and found["taken"]
    assert found["node"]["value"] == NAME
    assert found["node"]["options"]["values"] == ["none yet", NAME]
    assert not found["other"], "another node takes drops"


def test_an_embedding_dropped_on_the_canvas_adds_the_node(found) -> None:
    assert found["added"] == ["open subgraph"] * 3
    assert found["fresh"] == {"value": NAME, "pos": [30, 40]}


def test_the_next_one_of_a_drop_lies_below_and_the_page_is_told_of_it(found) -> None:
    assert found["second"] == {"told": [True], "pos": [30, 80]}


def test_an_embedding_that_the_menu_opens_is_put_where_the_page_has_new_nodes(found) -> None:
    assert found["opened"] == "as the page has it"


def test_what_is_no_embedding_is_left_to_comfyui(found) -> None:
    names = ["foreign.safetensors", "broken.safetensors", "flow.json"]
    assert found["passed"] == [[name, "file_drop"] for name in names]
    assert found["left"] is False


def test_problems_are_told(found) -> None:
    taken, value = found["foreign"]
    assert taken and value == NAME  # as it was
    first, second = found["toasts"]
    assert "foreign.safetensors holds no unCLIP embedding" in first
    assert "saved.safetensors: ComfyUI did not take it (500)" in second


def test_the_script_and_the_files_agree(found) -> None:
    script = SCRIPT.read_text("utf-8")
    assert f'METADATA_KEY = "{METADATA_KEY}"' in script
    assert f'FOLDER = "{embedding_files.SAVED_FOLDER}"' in script
