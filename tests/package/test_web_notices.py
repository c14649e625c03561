"""The Chinese texts of notices, and the names that Load unCLIP Embedding shows of its files."""

from __future__ import annotations

import json
import re

import pytest
from unclip.core.formats.published import PUBLISHED, facts_of, how_to_get

from ..helpers.page import WEB, in_page
from ..helpers.translated import is_chinese

TABLE = json.loads((WEB / "notices_zh.json").read_text(encoding="utf-8"))
PATTERN = re.compile(r'^const [A-Z_]+ = "(.*\{\w+\}.*)";', re.MULTILINE)  # a notice with gaps, in a script
GAP = re.compile(r"\{\w+\}")
SAY = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
const [language, pattern, values] = process.argv.slice(2);
app.extensionManager = { setting: { get: () => language } };
globalThis.fetch = async (url) => ({ ok: true, json: async () => JSON.parse(readFileSync(url, "utf-8")) });
const { notice } = await import("./extensions/unclip/unclip_language.js");
console.log(JSON.stringify(await notice(pattern, JSON.parse(values))));
"""
LABEL = """
import { app } from "./scripts/app.js";
await import("./extensions/unclip/unclip_file_labels.js");
const widget = { name: "file", options: { values: [] } };
const made = (comfyClass) => {
  const node = { comfyClass, size: [270, 58], widgets: [widget], setSize: (size) => (node.size = size) };
  app.extension.nodeCreated(node);
  return node.size;
};
const other = made("LoadImage"), untouched = widget.options.getOptionLabel === undefined;
const own = made("UnCLIPLoadEmbedding");
const labels = JSON.parse(process.argv[2]).map(widget.options.getOptionLabel);
console.log(JSON.stringify({ other, untouched, own, labels }));
"""


def test_every_notice_has_a_chinese_text_and_no_other() -> None:
    scripts = [path.read_text(encoding="utf-8") for path in WEB.glob("unclip*.js")]
    assert {each for script in scripts for each in PATTERN.findall(script)} == set(TABLE["notices"])
    for english, chinese in TABLE["notices"].items():
        assert sorted(GAP.findall(english)) == sorted(GAP.findall(chinese))


def test_all_notices_are_shown_in_one_place() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in WEB.glob("*.js")}
    assert [name for name, script in scripts.items() if "toast" in script.replace("unclip_toasts", "")] == [
        "unclip_toasts.js"
    ]


def test_every_fact_on_a_public_model_has_a_chinese_text_and_no_other() -> None:
    told = {text for model in PUBLISHED for text in (model.title, model.size, model.licence)}
    in_words = {text for text in told if re.search(r"\b[a-z]{2,}", text)}
    assert in_words == set(TABLE["models"])
    assert all(map(is_chinese, TABLE["models"].values()))


@pytest.mark.parametrize("command", ["unclip download", ""])
@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.name)
def test_the_facts_are_those_of_the_english_sentence(model, command) -> None:
    facts, sentence = facts_of(model, "models/unclip", command), how_to_get(model, "models/unclip", command)
    assert json.loads(json.dumps(facts))  # the page gets it
    for text in (facts["title"], facts["size"], facts["licence"], facts["command"]):
        assert text in sentence
    for what, place in facts["parts"]:
        assert (f"{what} into {place}" if place else what) in sentence


@pytest.mark.parametrize("language", ["zh", "fr", "en"])
def test_a_notice_is_in_the_language_of_the_page(tmp_path, language) -> None:
    pattern = "{file}: ComfyUI did not take it ({status})"
    said = in_page(tmp_path, SAY, language, pattern, json.dumps({"file": "x$&", "status": 500}))
    chinese = "x$&：ComfyUI 没有接收它（500）"
    assert said == (chinese if language == "zh" else "x$&: ComfyUI did not take it (500)")


def test_files_of_embeddings_are_told_apart_at_their_beginning(tmp_path) -> None:
    labels = {
        "unclip_embeddings/fox.safetensors [output]": "fox [output] · unclip_embeddings",
        "unclip_embeddings/a/fox.safetensors [input]": "fox [input] · unclip_embeddings/a",
        "fox.safetensors [input]": "fox [input]",
        "animals/fox.safetensors": "fox · animals",
        "fox.v2.safetensors": "fox.v2",
        "none yet.safetensors": "none yet",
        "": "",
        None: "",
    }
    found = in_page(tmp_path, LABEL, json.dumps(list(labels)))
    assert found["labels"] == list(labels.values())
    assert found["untouched"] and found["other"] == [270, 58] and found["own"] == [340, 58]
