"""The script that shows our templates in the language of the page, and its table of Chinese texts."""

from __future__ import annotations

import copy
import json
import re
import unicodedata
from typing import Any

import pytest

from ..helpers.page import in_page
from ..helpers.sources import ROOT
from ..helpers.translated import is_chinese

WEB = ROOT / "web"
TEMPLATES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "workflows").glob("*.json"))
}
TABLE = json.loads((WEB / "templates_zh.json").read_text(encoding="utf-8"))
NUMBER = re.compile(r"^(\d+ · )?")

# A page that loads what it is given; process.argv: the language, the status of the table, and the calls.
RUN = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
const [language, status, file] = process.argv.slice(2);
const loaded = [], asked = [];
app.loadGraphData = async function (...given) {
  if (this !== app) throw new Error("loadGraphData without its app");
  loaded.push(given);
  return "as the page says";
};
app.extensionManager = { setting: { get: (id) => (id === "Comfy.Locale" ? language : undefined) } };
globalThis.fetch = async (url) => {
  asked.push(url.href.split("/").pop());
  if (status === "refused") throw new TypeError("no connection");
  return { ok: status === "200", json: async () => JSON.parse(readFileSync(url, "utf-8")) };
};
await import("./extensions/unclip/unclip_texts.js");
const answers = [];
for (const call of JSON.parse(readFileSync(file, "utf-8"))) answers.push(await app.loadGraphData(...call));
console.log(JSON.stringify({ loaded, asked, answers }));
"""


def in_the_page(
    tmp_path, calls: list[list[Any]], language: str = "zh", status: str = "200"
) -> dict[str, Any]:
    """What the page's own loadGraphData got, which tables were asked for, and what the callers were told."""
    app = "export const app = { registerExtension: (extension) => extension.init() };"
    (tmp_path / "calls.json").write_text(json.dumps(calls), encoding="utf-8")
    return in_page(tmp_path, RUN, language, status, "calls.json", app=app)


def opened(name: str, graph: dict[str, Any] | None = None, source: str | None = "template") -> list[Any]:
    """The page's call for a template; older pages do not say what it is."""
    graph = TEMPLATES[name] if graph is None else graph
    return [graph, True, True, name, *([] if source is None else [{"openSource": source}])]


def texts(workflow: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Titles, without the numbers of groups, and notes."""
    titles = [NUMBER.sub("", group["title"]) for group in workflow["groups"]]
    titles += [node["title"] for node in workflow["nodes"] if node.get("title")]
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    return titles, notes


def without_texts(workflow: dict[str, Any]) -> dict[str, Any]:
    workflow = copy.deepcopy(workflow)
    for each in (*workflow["groups"], *workflow["nodes"]):
        each.pop("title", None)
        if each.get("type") == "MarkdownNote":
            each["widgets_values"] = []
    return workflow


def test_every_text_of_every_template_has_a_chinese_one_and_no_other() -> None:
    titles, notes = ({text for each in TEMPLATES.values() for text in texts(each)[i]} for i in (0, 1))
    assert titles == set(TABLE["titles"]), "web/templates_zh.json: titles"
    assert notes == set(TABLE["notes"]), "web/templates_zh.json: notes; the key is the whole English note"
    for kind in TABLE.values():
        assert [text for text in kind.values() if not is_chinese(text)] == []


def anchors(note: str) -> dict[str, Any]:
    """What a translation keeps: the shape of a note, its addresses, commands, files and workflows."""
    lines = note.splitlines()
    names = re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b", note)
    return {
        "lines": [re.match(r"#* ?|- |\d+\. |[a-c]\. ", line)[0] if line else None for line in lines],
        "addresses": re.findall(r"\]\((.*?)\)", note),
        "code": re.findall(r"`.*?`", note),
        "files": re.findall(r"ComfyUI/models/\S*?\.(?:pt|txt|json|ckpt|safetensors)", note),
        "workflows": [name for name in names if name in TEMPLATES],
        "captions": sorted(re.findall(r'"(.*?)"', note)),
    }


def stray_marks(note: str) -> list[str]:
    """Marks of emphasis that Markdown would show as asterisks, with their surroundings.

    CommonMark, "Emphasis and strong emphasis": a mark beside a letter opens or closes nothing where it has
    punctuation on its inner side, and Chinese has no spaces around it.
    """

    def binds(inner: str, outer: str) -> bool:
        def is_mark(text: str) -> bool:
            return unicodedata.category(text)[0] in "PS"

        return not inner.isspace() and (not is_mark(inner) or outer.isspace() or is_mark(outer))

    found, open_mark = [], None
    text = f"\n{re.sub('`.*?`', 'code', note)}\n"
    for mark in re.finditer(r"\*+", text):
        before, after = text[mark.start() - 1], text[mark.end()]
        pair = (after, before) if open_mark is None else (before, after)
        if not binds(*pair) or open_mark not in (None, mark[0]):
            found.append(text[max(0, mark.start() - 10) : mark.end() + 10])
        open_mark = mark[0] if open_mark is None else None
    return found if open_mark is None else [*found, "a mark that is not closed"]


def test_stray_marks_are_found() -> None:
    assert stray_marks("**字**：*mini* 是，**x**、**y**，换成*图*，`a*b`") == []
    assert stray_marks("**字：**是") and stray_marks("**字：***mini* 是") and stray_marks("**字")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chinese_note_says_as_much_as_the_english_one(name: str) -> None:
    (english,) = texts(TEMPLATES[name])[1]
    chinese = TABLE["notes"][english]
    assert anchors(chinese) == anchors(english)
    assert stray_marks(english) == stray_marks(chinese) == []


def test_a_template_is_chinese_in_a_chinese_page(tmp_path) -> None:
    calls = [opened(name, source=source) for name in TEMPLATES for source in ("template", None)]
    found = in_the_page(tmp_path, calls)
    assert found["asked"] == ["templates_zh.json"]  # once, however many are opened
    assert found["answers"] == ["as the page says"] * len(calls)
    for given, (graph, *others) in zip(calls, found["loaded"], strict=True):
        assert others[:3] == given[1:4]
        assert without_texts(graph) == without_texts(given[0])
        for before, after in zip(texts(given[0]), texts(graph), strict=True):
            table = TABLE["titles"] | TABLE["notes"]
            assert after == [table[text] for text in before]
        numbers = [NUMBER.match(group["title"])[0] for group in given[0]["groups"]]
        assert [NUMBER.match(group["title"])[0] for group in graph["groups"]] == numbers
        assert all(numbers)


def test_other_languages_and_other_workflows_stay(tmp_path) -> None:
    name = "text_to_image"
    changed = copy.deepcopy(TEMPLATES[name])
    (note,) = (node for node in changed["nodes"] if node["type"] == "MarkdownNote")
    note["widgets_values"][0] += " My own."
    others = [
        opened(name, changed),  # another pack's, or one's own: not our note
        opened(name, source="file_button"),
        [TEMPLATES[name], True, True, {"path": "workflows/mine.json"}],
        [TEMPLATES[name]],
        [None, True, True, name],
        opened(name, {"nodes": [{"type": "KSampler", "title": "Prior"}]}),
    ]
    found = in_the_page(tmp_path, others)
    assert [call[0] for call in found["loaded"]] == [call[0] for call in others]
    found = in_the_page(tmp_path, [opened(name)], language="fr")
    assert found["loaded"][0][0] == TEMPLATES[name] and found["asked"] == []


def test_titles_of_ones_own_in_our_template_stay(tmp_path) -> None:
    changed = copy.deepcopy(TEMPLATES["text_to_image"])
    changed["nodes"][0]["title"] = "toString"
    changed["groups"][0]["title"] = "mine"
    (graph, *_) = in_the_page(tmp_path, [opened("text_to_image", changed)])["loaded"][0]
    assert graph["nodes"][0]["title"] == "toString" and graph["groups"][0]["title"] == "mine"
    assert graph["groups"][1]["title"] == "2 · 编码"


@pytest.mark.parametrize("status", ["404", "refused"])
def test_without_the_table_a_template_opens_in_english(tmp_path, status) -> None:
    found = in_the_page(tmp_path, [opened("text_to_image")], status=status)
    assert found["loaded"][0][0] == TEMPLATES["text_to_image"]
