"""Workflows of another form than ComfyUI writes: each place is named, and nothing hangs."""

from __future__ import annotations

import json
import re
import time

import pytest
from unclip.cli.workflow import load_workflow, parse_workflow
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.json_text import MAX_DEPTH, JSONError, parse_json
from unclip.cli.workflow.overrides import apply_overrides, parse_override
from unclip.cli.workflow.subgraphs import MAX_NESTED, MAX_NODES

from ..helpers.workflow import UiBuilder, catalog

SUBGRAPH = "11111111-2222-3333-4444-555555555555"


def small():
    """Number (1) → Reroute (2) → Show (3)."""
    ui = UiBuilder()
    ui.node("Number", 3, "fixed", 0.5, "plain", "x", False, outputs=("INT", "STRING"))
    ui.node("Reroute", inputs={"": "*"}, outputs=("*",))
    ui.node("Show", inputs={"value": "*"})
    ui.link(1, 0, 2, "")
    ui.link(2, 0, 3, "value")
    return ui.json()


def put(*path):
    """A change that sets the value at a path of the document."""
    *way, last, value = path

    def change(document):
        for key in way:
            document = document[key]
        document[last] = value

    return change


def define(**subgraph):
    return put("definitions", {"subgraphs": [{"id": SUBGRAPH, "nodes": [], "links": [], **subgraph}]})


DAMAGE = {
    "no object": (put("nodes", 1, 5), r"nodes\[1\] is 5; expected an object"),
    "no id": (put("nodes", 1, "id", None), r"node None: has no id; expected a number or text"),
    "id of another kind": (put("nodes", 1, "id", [2]), r"node \[2\]: id is \[2\]; expected a number or text"),
    "the id of another": (put("nodes", 1, "id", 1), r"two nodes have the id 1"),
    "type": (
        put("nodes", 2, "type", {"a": 1}),
        r"node 3: type is \{'a': 1\}; expected the name of a node class",
    ),
    "inputs are text": (put("nodes", 2, "inputs", "x"), r"node 3: inputs is 'x'; expected a list"),
    "inputs are a number": (put("nodes", 2, "inputs", 5), r"node 3: inputs is 5; expected a list"),
    "an input": (put("nodes", 2, "inputs", 0, "x"), r"node 3: inputs\[0\] is 'x'; expected an object"),
    "its name": (
        put("nodes", 2, "inputs", 0, "name", ["a"]),
        r"node 3: inputs\[0\]: name is \['a'\]; expected a text",
    ),
    "no name": (put("nodes", 2, "inputs", 0, "name", None), r"node 3: inputs\[0\]: has no name"),
    "its link": (put("nodes", 2, "inputs", 0, "link", [2]), r"link is \[2\]; expected the id of a link"),
    "a link that is true": (put("nodes", 2, "inputs", 0, "link", True), r"link is True; expected the id"),
    "outputs": (put("nodes", 0, "outputs", 5), r"node 1: outputs is 5; expected a list"),
    "an output's links": (put("nodes", 0, "outputs", 0, "links", 5), r"node 1: outputs\[0\]: links is 5"),
    "widgets": (
        put("nodes", 0, "widgets_values", 5),
        r"node 1: widgets_values is 5; expected a list or an object",
    ),
    "properties": (put("nodes", 0, "properties", []), r"node 1: properties is \[\]; expected an object"),
    "links": (put("links", 5), r"links is 5; expected a list"),
    "a link": (put("links", 0, "x"), r"links: expected \[id, source, .*\], found 'x'"),
    "a short link": (put("links", 0, [1, 2]), r"links: expected \[id, source, .*\], found \[1, 2\]"),
    "no slot": (
        put("links", 0, 2, None),
        r"links\[0\]: has no origin_slot; expected the number of an output",
    ),
    "an infinite slot": (
        put("links", 0, 2, float("inf")),
        r"links\[0\]: origin_slot is inf; expected the number",
    ),
    "swapped fields": (
        put("links", 0, 4, "IMAGE"),
        r"links\[0\]: target_slot is 'IMAGE'; expected the number",
    ),
    "definitions": (put("definitions", "x"), r"definitions is 'x'; expected an object"),
    "subgraphs": (put("definitions", {"subgraphs": 5}), r"definitions\.subgraphs is 5; expected a list"),
    "a subgraph": (
        put("definitions", {"subgraphs": [5]}),
        r"definitions\.subgraphs\[0\] is 5; expected an object",
    ),
    "its nodes": (define(nodes=["x"]), r"definitions\.subgraphs\[0\]: nodes\[0\] is 'x'; expected an object"),
    "its links": (define(links=5), r"definitions\.subgraphs\[0\]: links is 5; expected a list"),
    "its sides": (
        define(inputNode=[]),
        r"definitions\.subgraphs\[0\]: inputNode is \[\]; expected an object",
    ),
    "its inputs": (
        define(inputs=["x"]),
        r"definitions\.subgraphs\[0\]: inputs\[0\] is 'x'; expected an object",
    ),
    "shown widgets": (
        put("nodes", 0, "properties", {"proxyWidgets": [["1", "seed"], [1, {}], 5]}),
        r"properties\.proxyWidgets\[1\] is \[1, \{\}\]; expected \[node id, widget\]\.\n.*\[2\] is 5",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_place_is_named(name):
    change, message = DAMAGE[name]
    document = small()
    change(document)
    with pytest.raises(WorkflowError) as caught:
        parse_workflow(document, catalog())
    assert re.search(message, str(caught.value)), str(caught.value)


def test_the_whole_form_is_read():
    assert parse_workflow(small(), catalog()).nodes["3"].inputs == {"value": ["1", 0]}


@pytest.mark.parametrize("field", ["inputs", "outputs", "widgets_values", "properties", "mode", "title"])
def test_what_is_not_stored_is_not_missed(field):
    document = small()
    for node in document["nodes"]:
        node[field] = None
    parse_workflow(document, catalog())


def test_a_file_of_nothing_but_damage_is_told_in_a_few_lines():
    document = {"nodes": [{"id": number, "type": 5} for number in range(1000)], "links": []}
    with pytest.raises(WorkflowError) as caught:
        parse_workflow(document, catalog())
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[-1].startswith("workflow: and 990 more of this kind")


@pytest.mark.parametrize(
    "body",
    [
        {"1": {"class_type": "Show", "inputs": {}, "_meta": "x"}},
        {"prompt": {"1": {"class_type": "Show", "inputs": {}}}, "extra_data": 5},
        {"prompt": {"1": {"class_type": "Show", "inputs": {}}}, "extra_data": {"extra_pnginfo": 5}},
        {
            "prompt": {"1": {"class_type": "Show", "inputs": {}}},
            "extra_data": {"extra_pnginfo": {"workflow": {"nodes": [5]}}},
        },
    ],
)
def test_what_only_decorates_an_api_form_does_not_stop_it(body):
    made = parse_workflow(body, catalog())
    assert made.nodes["1"].title == "Show" and made.ui is None


# ---------------------------------------------------------------------------------------- size and depth


def nested_json(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_json_that_is_nested_too_deep(tmp_path, depth):
    (tmp_path / "w.json").write_text('{"nodes": ' + nested_json(depth) + "}")
    with pytest.raises(WorkflowError, match=rf"w\.json: .* more than {MAX_DEPTH} deep"):
        load_workflow(tmp_path / "w.json", catalog())


def test_json_of_any_usual_depth():
    assert parse_json(nested_json(MAX_DEPTH - 1)) == json.loads(nested_json(MAX_DEPTH - 1))


def test_numbers_of_thousands_of_digits(tmp_path):
    (tmp_path / "w.json").write_text('{"nodes": [], "version": ' + "9" * 5000 + "}")
    with pytest.raises(WorkflowError, match=r"w\.json: a number in it has thousands of digits"):
        load_workflow(tmp_path / "w.json", catalog())
    with pytest.raises(JSONError):
        parse_json("9" * 5000)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000])
def test_options_that_are_no_json_are_text(text):
    workflow = apply_overrides(
        parse_workflow(small(), catalog()), [parse_override(f"1.label={text}")], catalog()
    )
    assert workflow.nodes["1"].inputs["label"] == text


def test_a_way_through_any_number_of_reroutes():
    document = small()
    for number in range(3000):
        own = 1000 + number
        document["nodes"].append(
            {"id": own, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": own}], "outputs": []}
        )
        document["links"].append([own, own + 1 if number < 2999 else 1, 0, own, 0, "*"])
    document["links"][1][1] = 1000
    assert parse_workflow(document, catalog()).nodes["3"].inputs == {"value": ["1", 0]}


def bomb(levels, shown):
    """Subgraphs of which each shows the next so many times."""
    ids = [f"{level:08d}-0000-0000-0000-000000000000" for level in range(levels)]
    subgraphs = [
        {"id": own, "nodes": [{"id": n, "type": inner} for n in range(shown if inner else 0)], "links": []}
        for own, inner in zip(ids, [*ids[1:], None], strict=True)
    ]
    return {"nodes": [{"id": 1, "type": ids[0]}], "links": [], "definitions": {"subgraphs": subgraphs}}


def test_subgraphs_that_multiply_end_soon():
    began = time.perf_counter()
    with pytest.raises(WorkflowError, match=f"more than {MAX_NODES} nodes"):
        parse_workflow(bomb(30, 2), catalog())
    assert time.perf_counter() - began < 10


def test_subgraphs_in_each_other():
    with pytest.raises(WorkflowError, match=f"more than {MAX_NESTED} deep in each other"):
        parse_workflow(bomb(5000, 1), catalog())
    parse_workflow(bomb(MAX_NESTED, 1), catalog())
