"""The scripts that tell errors and refusals of nodes, and that keep notices as long as they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..helpers.page import in_page

# A page with notices of its own kind, `newer` or not; process.argv: that, the text of a dialog that the page
# opens at each error, and what happens in turn.
RUN = """
import { app } from "./scripts/app.js";
import { api } from "./scripts/api.js";
const [newer, dialog, steps] = process.argv.slice(2);
let sight = [], number = 0;
const put = (kind, text) => (sight.push({ id: (number += 1), kind, text }), number);
const drop = (id) => (sight = sight.filter((each) => each.id !== id));
const method = (kind) => (title, { description, ...others }) => {
  if (Object.keys(others).length) throw new Error("a notice has a life of its own");
  return put(kind, `${title}: ${description}`);
};
const toast = newer === "yes"
  ? { error: method("error"), warning: method("warn"), dismiss: drop, add: () => put("error", "odd") }
  : {
      add: (message) => {
        if ("life" in message) throw new Error("a notice has a life of its own");
        message.id = put(message.severity, `${message.summary}: ${message.detail}`);
      },
      remove: (message) => drop(message.id),
    };
app.extensionManager = { toast };
const heard = {};
api.addEventListener = (kind, called) => (heard[kind] = called);
globalThis.document = { querySelectorAll: () => [{ textContent: "Settings" }, { textContent: dialog }] };
app.registerExtension = (extension) => { extension.init?.(); extension.setup?.(); };
let answer;
const errors = [];
api.queuePrompt = async function () {
  if (this !== api) throw new Error("queuePrompt without its api");
  await null;
  if (answer.refused) throw Object.assign(new Error("refused"), { response: answer });
  return answer;
};
app.queuePrompt = async function () {
  if (this !== app) throw new Error("queuePrompt without its app");
  try { return await api.queuePrompt(0, {}); } catch (error) { errors.push(error); }
};
app.loadGraphData = async (...given) => given;
await import("./extensions/unclip/unclip_errors.js");
const seen = [];
for (const [kind, given] of JSON.parse(steps)) {
  if (kind === "run") { answer = given; await app.queuePrompt(0); }
  if (kind === "start") heard.execution_start?.({ detail: given });
  if (kind === "fails") heard.execution_error({ detail: given });
  if (kind === "open") await app.loadGraphData({}, true, true, "other");
  if (kind === "undo") await app.loadGraphData({}, false, false, "same");
  if (kind === "close") sight = [];
  await new Promise((resolve) => setTimeout(resolve, 600));
  seen.push(sight.map(({ kind, text }) => `${kind} ${text}`));
}
for (const error of errors)
  if (!error.response || error.stack.includes("unclip_")) throw new Error(`we are blamed: ${error.stack}`);
console.log(JSON.stringify([seen, number]));
"""
FINE: dict[str, Any] = {"prompt_id": "1", "node_errors": {}}
FAILED = {"node_type": "UnCLIPDecode", "exception_message": "steps: 0 is too few.\n"}
TOLD = "error unCLIP: steps: 0 is too few."


def refused(*errors: tuple[str, str, str], node: str = "UnCLIPLoadBundle", **others: Any) -> dict[str, Any]:
    """ComfyUI's answer to a prompt with errors: type, input and what comes after it."""
    listed = [
        {"type": kind, "details": f"{name} - {text}" if text else name, "extra_info": {"input_name": name}}
        for kind, name, text in errors
    ]
    return {"refused": True, "node_errors": {"3": {"class_type": node, "errors": listed}}, **others}


OURS = "custom_validation_failed"


def in_turn(folder: Path, *steps: tuple[str, Any], newer: bool = True, dialog: str = "") -> list[list[str]]:
    """What is in sight after each step."""
    seen, _ = in_page(folder, RUN, "yes" if newer else "no", dialog, json.dumps(steps))
    return seen


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (FINE, []),
        (refused((OURS, "file", "there is no x; put it there.")), ["file: there is no x; put it there."]),
        # One text at every input that a node checks, with the names of those it is about.
        (refused(*((OURS, name, "bundle: no x\nwith_bundle: no y") for name in ("bundle", "with_bundle"))),
         ["bundle: no x", "with_bundle: no y"]),
        (refused((OURS, "file", "no x; found\na, b")), ["file: no x; found\na, b"]),
        # Some outputs run and others do not: the page is told so, and no error is raised.
        ({**refused((OURS, "file", "no x")), "refused": False, "prompt_id": "1"}, ["file: no x"]),
        # The page has words of its own for these, other nodes have theirs, and a bare refusal says nothing.
        (refused(("value_smaller_than_min", "steps", "at least 1")), []),
        (refused((OURS, "file", "no x"), node="LoadImage"), []),
        (refused((OURS, "file", "")), []),
        ({"refused": True, "error": "no nodes"}, []),
    ],
)  # fmt: skip
def test_a_node_that_refuses_its_inputs_is_heard(tmp_path, answer, texts) -> None:
    (seen,), count = in_page(tmp_path, RUN, "yes", "", json.dumps([("run", answer)]))
    assert seen == [f"error unCLIP: {text}" for text in texts]
    assert count == len(texts), "none is put up and taken away again"


@pytest.mark.parametrize("newer", [True, False])
def test_a_notice_stays_until_it_is_over(tmp_path, newer) -> None:
    fails = ("fails", FAILED)
    refusal = ("run", refused((OURS, "file", "no x")))
    steps = [fails, ("undo", None), ("start", {}), fails, ("run", FINE), fails, ("open", None), refusal]
    steps += [("close", None), refusal, fails, ("fails", {**FAILED, "node_type": "KSampler"}), ("run", FINE)]
    other = "error unCLIP: file: no x"
    expected = [[TOLD], [TOLD], [TOLD], [TOLD], [], [TOLD], [], [other], [], [other], [other, TOLD]]
    assert in_turn(tmp_path, *steps, newer=newer) == [*expected, [other, TOLD], []]


def test_what_a_dialog_of_the_page_says_is_not_said_twice(tmp_path) -> None:
    steps = [("fails", FAILED), ("run", refused((OURS, "file", "no x"), (OURS, "lora", "no y")))]
    dialog = "Decode: steps: 0 is too few. Custom validation failed: file - file: no x"
    assert in_turn(tmp_path, *steps, dialog=dialog) == [[], ["error unCLIP: lora: no y"]]
