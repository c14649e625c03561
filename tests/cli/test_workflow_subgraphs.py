"""Subgraphs of the UI form become the nodes that ComfyUI's frontend would queue, under the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unclip.cli.workflow.builtin_nodes import NODE_CLASS_MAPPINGS as BUILTIN
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.overrides import apply_overrides, parse_override
from unclip.cli.workflow.reading import parse_workflow
from unclip.cli.workflow.specs import ClassCatalog
from unclip.nodes import NODE_CLASS_MAPPINGS as PACK

from ..helpers.workflow import UiBuilder, catalog, node_class

MUTED, BYPASSED = 2, 4
OUTER, INNER = "0a1b2c3d-0000-4000-8000-00000000000a", "0a1b2c3d-0000-4000-8000-00000000000b"
SAVED = sorted((Path(__file__).parent / "saved_workflows").glob("subgraphs_*.json"))


class Definition(UiBuilder):
    """A definition of a subgraph: a graph whose links are objects, with an input and an output side."""

    def __init__(self, identity: str, name: str) -> None:
        super().__init__()
        self.identity, self.name = identity, name
        self.ins: list[dict] = []
        self.outs: list[dict] = []
        self.ends: list[dict] = []

    def takes(self, name: str, kind: str, *targets: tuple[int, str]) -> None:
        """An input of the subgraph, linked to inputs (node, name) inside."""
        for node, target in targets:
            at = next(i for i, e in enumerate(self.nodes[node - 1]["inputs"]) if e["name"] == target)
            link = self._end(-10, len(self.ins), node, at, kind)
            self.nodes[node - 1]["inputs"][at]["link"] = link
        self.ins.append({"id": name, "name": name, "type": kind})

    def gives(self, name: str, kind: str, node: int, slot: int = 0) -> None:
        self._end(node, slot, -20, len(self.outs), kind)
        self.outs.append({"id": name, "name": name, "type": kind})

    def _end(self, source: int, slot: int, target: int, target_slot: int, kind: str) -> int:
        link = {"id": 100 + len(self.ends), "origin_id": source, "origin_slot": slot, "type": kind}
        self.ends.append({**link, "target_id": target, "target_slot": target_slot})
        return link["id"]

    def definition(self) -> dict:
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": self.identity,
            "name": self.name,
            "inputNode": {"id": -10},
            "outputNode": {"id": -20},
            "inputs": self.ins,
            "outputs": self.outs,
            "nodes": self.nodes,
            "links": [dict(zip(keys, link, strict=True)) for link in self.links] + self.ends,
        }


def stage(identity=OUTER, name="Stage", promote=()):
    """Number (1) and Double (2): takes the value to double, gives the double and the number."""
    made = Definition(identity, name)
    made.node(
        "Number",
        *(3, "fixed", 0.5, "plain", "x", False),
        outputs=("INT", "STRING"),
        widget_inputs={"seed": "INT", "strength": "FLOAT", "label": "STRING"},
    )
    made.node("Double", inputs={"value": "INT"}, outputs=("INT",))
    made.takes("value", "INT", (2, "value"))
    for name in promote:
        made.takes(name, "*", (1, name))
    made.gives("double", "INT", 2)
    made.gives("number", "INT", 1)
    return made


def around(inner, *values, source=True, **more):
    """Number (1) → the subgraph (2) → Show (3) the double, Show (4) the number."""
    ui = UiBuilder()
    ui.node("Number", 1, "fixed", 0.1, "plain", "y", False, outputs=("INT", "STRING"))
    inputs = {entry["name"]: entry["type"] for entry in inner.ins}
    outputs = tuple(entry["type"] for entry in inner.outs)
    ui.node(inner.identity, *values, inputs=inputs, outputs=outputs, **more)
    if source:
        ui.link(1, 0, 2, "value")
    for slot in range(2):
        show = ui.node("Show", inputs={"value": "INT"})
        ui.link(2, slot, show, "value")
    return ui


def graph(ui, *definitions, **more):
    subgraphs = {"subgraphs": [entry.definition() for entry in definitions]}
    return parse_workflow(ui.json(definitions=subgraphs), catalog(**more))


def problems(ui, *definitions, **more):
    with pytest.raises(WorkflowError) as caught:
        graph(ui, *definitions, **more)
    return caught.value.problems


def proxies(*entries):
    return {"properties": {"proxyWidgets": [list(entry) for entry in entries]}}


def test_inner_nodes_take_the_place_of_the_subgraph():
    made = graph(around(stage()), stage())
    assert set(made.nodes) == {"1", "2:1", "2:2", "3", "4"}
    assert made.nodes["2:2"].inputs == {"value": ["1", 0]}
    assert made.nodes["3"].inputs == {"value": ["2:2", 0]}
    assert made.nodes["4"].inputs == {"value": ["2:1", 0]}
    assert made.nodes["2:1"].inputs["seed"] == 3
    assert made.ui["definitions"]["subgraphs"][0]["name"] == "Stage"


def test_an_override_names_an_inner_node():
    made = graph(around(stage()), stage())
    made = apply_overrides(made, [parse_override("2:1.seed=8")], catalog())
    assert made.nodes["2:1"].inputs["seed"] == 8
    assert made.nodes["1"].inputs["seed"] == 1


def test_two_nodes_of_one_definition_hold_values_of_their_own():
    inner = stage(promote=("seed", "label"))
    ui = around(inner, 7, "first")
    ui.node(OUTER, 9, "second", inputs={"value": "INT", "seed": "*", "label": "*"}, outputs=("INT", "INT"))
    made = graph(ui, inner)
    assert [made.nodes[i].inputs["seed"] for i in ("2:1", "5:1")] == [7, 9]
    assert [made.nodes[i].inputs["label"] for i in ("2:1", "5:1")] == ["first", "second"]
    assert made.nodes["2:1"].inputs["strength"] == 0.5
    assert made.nodes["5:2"].inputs == {}
    reason = "nothing is connected to input 'value' of node 5 (subgraph \"Stage\")"
    assert made.dropped["5:2", "value"] == reason


def test_promoted_values_by_the_property_that_lists_them():
    inner = stage(promote=("seed", "label"))
    listed = proxies(("1", "strength"), ("-1", "label"), ("-1", "seed"))
    made = graph(around(inner, 0.75, "outer", None, **listed), inner)
    # A value that the outer node holds wins; what it holds as None is the inner node's own.
    assert made.nodes["2:1"].inputs["strength"] == 0.75
    assert made.nodes["2:1"].inputs["label"] == "outer"
    assert made.nodes["2:1"].inputs["seed"] == 3


def test_inputs_that_the_frontend_left_out_when_it_saved():
    inner = stage(promote=("seed",))
    ui = around(inner, 7)
    ui.nodes[1]["inputs"].pop()
    assert graph(ui, inner).nodes["2:1"].inputs["seed"] == 7


def test_a_link_wins_over_a_promoted_value():
    inner = stage(promote=("seed",))
    ui = around(inner, 7)
    ui.link(1, 0, 2, "seed")
    assert graph(ui, inner).nodes["2:1"].inputs["seed"] == ["1", 0]


@pytest.mark.parametrize(("mode", "expected"), [(0, 42), (MUTED, 7)])
def test_a_primitive_sets_a_promoted_widget(mode, expected):
    inner = stage(promote=("seed",))
    ui = around(inner, 7)
    primitive = ui.node("PrimitiveNode" if mode == 0 else "Double", 42, outputs=("INT",), mode=mode)
    ui.link(primitive, 0, 2, "seed")
    assert graph(ui, inner).nodes["2:1"].inputs["seed"] == expected


def test_a_promoted_value_that_is_a_list_is_no_link():
    many = node_class({"names": (["a", "b"], {"multi_select": True})}, returns=("INT",))
    inner = Definition(OUTER, "Stage")
    inner.node("Many", ["a"], outputs=("INT",), widget_inputs={"names": "COMBO"})
    inner.takes("names", "COMBO", (1, "names"))
    ui = UiBuilder()
    ui.node(OUTER, ["a", "b"], inputs={"names": "COMBO"})
    assert graph(ui, inner, Many=many).nodes["1:1"].inputs == {"names": {"__value__": ["a", "b"]}}


def nested(inner_values=(), promote=("seed",), **inner_more):
    """A definition around the stage, which is its node 1."""
    inner = stage(INNER, "Inner", promote)
    outer = Definition(OUTER, "Outer")
    outer.node(
        INNER,
        *inner_values,
        inputs={"value": "INT"},
        widget_inputs=dict.fromkeys(promote, "*"),
        outputs=("INT", "INT"),
        **inner_more,
    )
    outer.takes("value", "INT", (1, "value"))
    for name in promote:
        outer.takes(name, "*", (1, name))
    outer.gives("double", "INT", 1, 0)
    outer.gives("number", "INT", 1, 1)
    return outer, inner


def test_a_subgraph_in_a_subgraph():
    outer, inner = nested((5,))
    made = graph(around(outer, 11), outer, inner)
    assert set(made.nodes) == {"1", "2:1:1", "2:1:2", "3", "4"}
    assert made.nodes["2:1:1"].inputs["seed"] == 11
    assert made.nodes["2:1:2"].inputs == {"value": ["1", 0]}
    assert made.nodes["3"].inputs == {"value": ["2:1:2", 0]}


def test_the_nearest_subgraph_that_holds_a_value_gives_it():
    outer, inner = nested((5,))
    assert graph(around(outer), outer, inner).nodes["2:1:1"].inputs["seed"] == 5
    outer, inner = nested()
    assert graph(around(outer), outer, inner).nodes["2:1:1"].inputs["seed"] == 3


@pytest.mark.parametrize("entry", [("1", "1: label"), ("1:1", "label")])
def test_a_widget_shown_through_two_subgraphs(entry):
    outer, inner = nested(("inner",), **proxies(("1", "label")))
    assert graph(around(outer), outer, inner).nodes["2:1:1"].inputs["label"] == "inner"
    made = graph(around(outer, "outermost", **proxies(entry)), outer, inner)
    assert made.nodes["2:1:1"].inputs["label"] == "outermost"


def test_a_muted_subgraph_is_left_out():
    made = graph(around(stage(), mode=MUTED), stage())
    assert set(made.nodes) == {"1", "3", "4"}
    assert made.inactive == {"2": "muted", "2:1": "muted", "2:2": "muted"}
    assert made.dropped["3", "value"] == 'node 2 (subgraph "Stage") is muted'
    with pytest.raises(WorkflowError, match="node 2:1 is muted and does not run; enable it"):
        apply_overrides(made, [parse_override("2:1.seed=8")], catalog())


def test_a_bypassed_subgraph_passes_its_input_through():
    made = graph(around(stage(), mode=BYPASSED), stage())
    assert set(made.nodes) == {"1", "3", "4"}
    assert made.nodes["3"].inputs == {"value": ["1", 0]}
    assert made.inactive["2:2"] == "bypassed"


@pytest.mark.parametrize(
    ("mode", "expected"), [(MUTED, {}), (BYPASSED, {"value": ["1", 0]})], ids=["muted", "bypassed"]
)
def test_an_inner_node_that_does_not_run(mode, expected):
    inner = stage()
    inner.nodes[1]["mode"] = mode
    made = graph(around(inner), inner)
    assert set(made.nodes) == {"1", "2:1", "3", "4"}
    assert made.nodes["3"].inputs == expected


def test_a_bypassed_subgraph_in_a_subgraph():
    outer, inner = nested(mode=BYPASSED)
    made = graph(around(outer), outer, inner)
    assert set(made.nodes) == {"1", "3", "4"}
    assert made.nodes["3"].inputs == {"value": ["1", 0]}
    assert made.inactive["2:1:1"] == "bypassed"


def test_an_input_that_goes_straight_to_an_output():
    inner = Definition(OUTER, "Wire")
    inner.takes("value", "INT")
    inner.gives("first", "INT", -10)
    inner.outs.append({"id": "open", "name": "open", "type": "INT"})
    made = graph(around(inner), inner)
    assert made.nodes["3"].inputs == {"value": ["1", 0]}
    reason = "nothing inside is connected to output 'open' of node 2 (subgraph \"Wire\")"
    assert made.dropped["4", "value"] == reason


def test_a_missing_definition():
    ui = around(stage(), title="Mine")
    (problem,) = problems(ui)
    assert problem == (
        'node 2: "Mine" is a subgraph that the workflow does not define (in definitions.subgraphs). Open the '
        "workflow in ComfyUI and save it again."
    )
    ui.nodes[1]["mode"] = MUTED
    assert set(graph(ui).nodes) == {"1", "3", "4"}


def test_a_subgraph_that_contains_itself():
    outer, inner = nested()
    inner.node(OUTER)
    (problem,) = problems(around(outer), outer, inner)
    assert problem == (
        'node 2:1:3: the subgraph "Outer" contains itself ("Outer" → "Inner" → "Outer"), so it has no end. '
        "Remove that node from the subgraph in ComfyUI."
    )


def test_problems_inside_name_the_inner_nodes():
    inner = stage()
    inner.node("Nunber", title="Mine")
    inner.node("workflow>Pair")
    unknown, group = problems(around(inner), inner)
    assert unknown.startswith('node 2:3 (Nunber "Mine"): this installation has no node class')
    assert group.startswith("node 2:4 (workflow>Pair): group nodes are not supported")


def test_a_link_inside_from_a_node_that_is_not_there():
    inner = stage()
    inner.ends[0]["origin_id"] = 77
    made = graph(around(inner), inner)
    assert made.nodes["2:2"].inputs == {}
    assert made.dropped["2:2", "value"] == "its link comes from node 2:77, which is not in the workflow"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_the_same_prompt_as_comfyui(path):
    """Workflows saved by frontend 1.35.9, with what its graphToPrompt made of them."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    made = parse_workflow(saved["workflow"], ClassCatalog({**PACK, **BUILTIN})).to_api()
    assert made.keys() == saved["prompt"].keys()
    for node_id, expected in saved["prompt"].items():
        assert made[node_id]["class_type"] == expected["class_type"]
        # Inputs that nodes have got since have their defaults.
        inputs = {name: made[node_id]["inputs"].get(name) for name in expected["inputs"]}
        assert inputs == expected["inputs"], node_id


def test_there_are_saved_workflows():
    assert len(SAVED) == 2
