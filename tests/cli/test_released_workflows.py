"""The workflow files of every release give their nodes what they gave them then, for ever."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..helpers.releases import (
    EVERY_NODE,
    GRAPH,
    NODES,
    RELEASES,
    catalog_of,
    changed_inputs,
    graph_of,
    read,
)

FILES = [
    path for path in sorted(RELEASES.glob("*/*.json")) if path.name != NODES and not path.name.endswith(GRAPH)
]
FIRST = RELEASES / "0.7.0"


def graph_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}{GRAPH}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_kept_file_gives_the_same_inputs(path: Path) -> None:
    catalog = catalog_of()
    assert changed_inputs(read(graph_file(path)), graph_of(read(path), catalog), catalog) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_kept_graph_is_whole(path: Path) -> None:
    """Every value of our nodes that the file holds stands in the graph, under the name of its position."""
    graph, declared = read(graph_file(path)), read(path.parent / NODES)
    ours = [node for node in read(path)["nodes"] if node["type"] in declared and node["mode"] == 0]
    assert ours
    for node in ours:
        inputs = graph[str(node["id"])]["inputs"]
        widgets = declared[node["type"]]["widgets"]
        values = list(node["widgets_values"])
        if "seed" in widgets:
            assert values.pop(widgets.index("seed") + 1) in ("fixed", "increment", "randomize")
        assert len(values) == len(widgets)
        fed = {entry["name"] for entry in node["inputs"] if entry.get("link") is not None}
        held = dict(zip(widgets, values, strict=True))
        assert {name: inputs[name] for name in widgets if name not in fed} == {
            name: value for name, value in held.items() if name not in fed
        }
        assert fed <= {name for name, value in inputs.items() if isinstance(value, list)}


def test_sixteen_workflows_and_every_node_are_kept() -> None:
    names = {path.name for path in FILES if path.parent == FIRST}
    assert len(names) == 17 and {EVERY_NODE, "text_to_image.json"} <= names
    kinds = {node["class_type"] for node in read(graph_file(FIRST / EVERY_NODE)).values()}
    assert kinds == set(read(FIRST / NODES)) <= set(NODE_CLASS_MAPPINGS)


def changed(node_id: str, change) -> list[str]:
    """What the check says of a kept file when the inputs of a class are changed."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    declared = copy.deepcopy(cls.INPUT_TYPES())
    change(declared)
    made = type(node_id, (cls,), {"INPUT_TYPES": classmethod(lambda cls: declared)})
    catalog = catalog_of({**NODE_CLASS_MAPPINGS, node_id: made})
    path = FIRST / EVERY_NODE
    return changed_inputs(read(graph_file(path)), graph_of(read(path), catalog), catalog)


def test_a_widget_in_the_middle_is_seen() -> None:
    def change(declared: dict) -> None:
        optional = declared["optional"]
        more = {"more": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0})}
        declared["optional"] = more | optional

    problems = changed("UnCLIPDecode", change)
    assert any("(UnCLIPDecode): eta is" in problem for problem in problems)
    assert any("(UnCLIPDecode): more is" in problem for problem in problems)


def test_a_widget_that_is_gone_is_seen_and_one_that_stands_last_changes_nothing() -> None:
    def last(declared: dict) -> None:
        declared["optional"]["more"] = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0})

    def gone(declared: dict) -> None:
        del declared["optional"]["eta"]

    assert changed("UnCLIPDecode", last) == []
    assert any("eta" in problem for problem in changed("UnCLIPDecode", gone))
