"""Graphs are checked against their classes as in ComfyUI, and refused with node, input and remedy."""

from __future__ import annotations

import pytest
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.graph import Workflow
from unclip.cli.workflow.reading import parse_workflow
from unclip.cli.workflow.validation import types_match, validate

from ..helpers.workflow import UiBuilder, catalog, node_class

NUMBER = {"seed": 3, "strength": 0.5, "mode": "plain"}


def plan(nodes, warn=None, **classes):
    document = {
        node_id: {"class_type": class_type, "inputs": inputs}
        for node_id, (class_type, inputs) in nodes.items()
    }
    return validate(parse_workflow(document, catalog(**classes)), catalog(**classes), warn)


def problems(nodes, **classes):
    with pytest.raises(WorkflowError) as caught:
        plan(nodes, **classes)
    return caught.value.problems


def number(**changed):
    """A graph of Number and Show with other inputs; None leaves one out."""
    inputs = {name: value for name, value in {**NUMBER, **changed}.items() if value is not None}
    return {"1": ("Number", inputs), "2": ("Show", {"value": ["1", 0]})}


def test_a_good_graph_is_ordered_by_its_links():
    made = plan(
        {"9": ("Show", {"value": ["4", 0]}), "4": ("Double", {"value": ["7", 0]}), "7": ("Number", NUMBER)}
    )
    assert made.order == ("7", "4", "9")
    assert made.outputs == ("9",)


def test_nodes_that_no_output_needs_do_not_run_and_are_not_checked():
    made = plan({**number(), "3": ("Double", {}), "4": ("Number", {"seed": -5})})
    assert made.order == ("1", "2")


def test_values_are_converted_as_comfyui_converts_them():
    made = plan(number(seed="12", strength=1, label=7, loud=1))
    assert made.workflow.nodes["1"].inputs == {
        "seed": 12,
        "strength": 1.0,
        "mode": "plain",
        "label": "7",
        "loud": True,
    }
    assert isinstance(made.workflow.nodes["1"].inputs["strength"], float)
    assert plan(number(seed=3.7)).workflow.nodes["1"].inputs["seed"] == 3


@pytest.mark.parametrize(("text", "value"), [("False", True), ("", False)])
def test_a_text_for_a_switch_counts_as_in_comfyui_and_is_warned_of(text, value):
    warnings = []
    made = plan(number(loud=text), warnings.append)
    assert made.workflow.nodes["1"].inputs["loud"] is value
    assert warnings == [
        f"node 1 (Number), input 'loud': the text {text!r} counts as {str(value).lower()}, as in ComfyUI, "
        "where only the empty one is false; write true or false without quotes."
    ]


def test_an_unknown_class_anywhere_is_an_error():
    (problem,) = problems({**number(), "3": ("Shwo", {})})
    assert problem == "node 3 (Shwo): this installation has no node class 'Shwo'. Did you mean \"Show\"?"


def test_no_output_node():
    (problem,) = problems({"1": ("Number", NUMBER)})
    assert problem.startswith("the workflow has no output node")
    assert "SaveImage" in problem


def test_no_nodes():
    with pytest.raises(WorkflowError, match="holds no nodes that run"):
        validate(Workflow({}), catalog())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"seed": None},
            "input 'seed': is required and has no value; expected a whole number from 0 to 100.",
        ),
        ({"seed": "many"}, "input 'seed': found 'many', expected a whole number from 0 to 100."),
        ({"seed": -1}, "input 'seed': found -1, expected a whole number from 0 to 100."),
        ({"seed": 101}, "input 'seed': found 101, expected a whole number from 0 to 100."),
        ({"seed": {}}, "input 'seed': found {}, expected a whole number from 0 to 100."),
        ({"strength": 1.01}, "input 'strength': found 1.01, expected a number from 0.0 to 1.0."),
        ({"strength": "x"}, "input 'strength': found 'x', expected a number from 0.0 to 1.0."),
        (
            {"mode": "fanzy"},
            'input \'mode\': found \'fanzy\', expected one of "plain", "fancy". Did you mean "fancy"?',
        ),
        (
            {"seed": [1, 2, 3]},
            "input 'seed': a list stands for a link [node id, output index]; found [1, 2, 3].",
        ),
        (
            {"seed": [2, 0]},
            "input 'seed': a list stands for a link [node id, output index]; found [2, 0]. "
            'Node ids are strings: ["2", 0].',
        ),
        (
            {"seed": ["8", 0]},
            "input 'seed': is linked to node 8, which is not in the workflow. Connect it to another node.",
        ),
    ],
)
def test_bad_values_are_named_with_node_and_input(changed, expected):
    assert problems(number(**changed)) == (f"node 1 (Number), {expected}",)


@pytest.mark.parametrize("seed", [0, 100])
def test_the_ends_of_a_range_are_inside(seed):
    assert plan(number(seed=seed)).workflow.nodes["1"].inputs["seed"] == seed


def test_all_problems_are_told_at_once():
    found = problems(number(seed=-1, strength=2, mode="odd"))
    assert len(found) == 3


def test_a_required_socket():
    assert problems({"1": ("Double", {}), "2": ("Show", {"value": ["1", 0]})}) == (
        "node 1 (Double), input 'value': is required and nothing is connected; "
        "connect an output of type INT.",
    )


def test_a_value_where_only_a_link_fits():
    classes = {"Paint": node_class({"image": ("IMAGE", {})}, OUTPUT_NODE=True)}
    assert problems({"1": ("Paint", {"image": "fox.png"})}, **classes) == (
        "node 1 (Paint), input 'image': found 'fox.png'; connect an output of type IMAGE instead.",
    )
    assert plan({"1": ("Paint", {"image": None})}, **classes)
    assert plan({"1": ("Show", {"value": "anything"})})


def test_a_required_input_whose_source_is_muted_says_so():
    ui = UiBuilder()
    ui.node("Number", 1, "fixed", 0.5, "plain", outputs=("INT", "STRING"), mode=2)
    ui.node("Double", inputs={"value": "INT"}, outputs=("INT",))
    ui.node("Show", inputs={"value": "*"})
    ui.link(1, 0, 2, "value")
    ui.link(2, 0, 3, "value")
    with pytest.raises(WorkflowError) as caught:
        validate(parse_workflow(ui.json(), catalog()), catalog())
    assert caught.value.problems == (
        "node 2 (Double), input 'value': is required, but node 1 (Number) is muted. "
        "Connect it to a node that runs.",
    )


def test_an_output_that_is_not_there():
    nodes = {"1": ("Number", NUMBER), "2": ("Show", {"value": ["1", 5]}), "3": ("Show", {"value": ["2", 0]})}
    assert problems(nodes) == (
        "node 2 (Show), input 'value': is linked to output 5 of node 1 (Number), "
        "which has the outputs 0 to 1.",
        "node 3 (Show), input 'value': is linked to output 0 of node 2 (Show), which has no outputs.",
    )
    assert "is linked to output -1" in problems({**number(), "2": ("Show", {"value": ["1", -1]})})[0]


def test_an_output_of_the_wrong_type_with_the_one_that_fits():
    nodes = {
        "1": ("Number", NUMBER),
        "2": ("Double", {"value": ["1", 1]}),
        "3": ("Show", {"value": ["2", 0]}),
    }
    assert problems(nodes) == (
        "node 2 (Double), input 'value': expected INT, but output 1 of node 1 (Number) is STRING. "
        "Its output 0 (number) fits.",
    )


def test_a_cycle_names_its_nodes():
    nodes = {
        "1": ("Double", {"value": ["2", 0]}),
        "2": ("Double", {"value": ["1", 0]}),
        "3": ("Show", {"value": ["1", 0]}),
    }
    (problem,) = problems(nodes)
    assert problem.startswith(
        "the workflow has a cycle: node 1 (Double) ← node 2 (Double) ← node 1 (Double). A node cannot "
    )
    assert "cycle: node 1 (Double) ← node 1" in problems({**nodes, "1": ("Double", {"value": ["1", 0]})})[0]


def test_a_diamond_is_no_cycle():
    add = node_class({"a": ("INT", {}), "b": ("INT", {})}, returns=("INT",))
    made = plan(
        {
            "4": ("Show", {"value": ["3", 0]}),
            "3": ("Add", {"a": ["2", 0], "b": ["1", 0]}),
            "2": ("Double", {"value": ["1", 0]}),
            "1": ("Number", NUMBER),
        },
        Add=add,
    )
    assert made.order == ("1", "2", "3", "4")


def test_a_chain_longer_than_the_recursion_limit():
    nodes = {"0": ("Number", NUMBER)}
    nodes |= {str(i): ("Double", {"value": [str(i - 1), 0]}) for i in range(1, 3000)}
    nodes["show"] = ("Show", {"value": ["2999", 0]})
    assert len(plan(nodes).order) == 3001


def test_inputs_nobody_knows_are_ignored_with_a_warning():
    warnings = []
    made = plan(number(stregnth=0.1), warn=warnings.append)
    assert made.order == ("1", "2")
    assert warnings == ["node 1 (Number) has no input 'stregnth'; it is ignored. Did you mean \"strength\"?"]


def checking(function):
    """A Number that checks its own inputs."""
    return node_class(
        {"seed": ("INT", {"min": 0, "max": 9}), "mode": (["a"],)},
        {"other": ("INT", {"max": 5, "forceInput": True})},
        returns=("INT",),
        VALIDATE_INPUTS=classmethod(function),
    )


def test_validate_inputs_replaces_the_checks_of_the_inputs_it_names():
    seen = []

    def check(cls, seed):
        seen.append(seed)
        return True

    nodes = {"1": ("Own", {"seed": 77, "mode": "a"}), "2": ("Show", {"value": ["1", 0]})}
    assert plan(nodes, Own=checking(check)).order == ("1", "2")
    assert seen == [77]
    nodes["1"] = ("Own", {"seed": 77, "mode": "b"})
    assert "input 'mode': found 'b'" in problems(nodes, Own=checking(check))[0]


def test_what_validate_inputs_says_reaches_the_user():
    nodes = {"1": ("Own", {"seed": 7, "mode": "a"}), "2": ("Show", {"value": ["1", 0]})}
    assert problems(nodes, Own=checking(lambda cls, seed: f"{seed} is unlucky.")) == (
        "node 1 (Own), input 'seed': 7 is unlucky.",
    )
    assert "the node refuses {'seed': 7}" in problems(nodes, Own=checking(lambda cls, seed: False))[0]


def test_validate_inputs_gets_none_for_links_and_types_on_request():
    seen = {}

    def check(cls, input_types, **given):
        seen.update(given, types=input_types)
        return True

    nodes = {
        "0": ("Number", NUMBER),
        "1": ("Own", {"seed": 7, "mode": "anything", "other": ["0", 1]}),
        "2": ("Show", {"value": ["1", 0]}),
    }
    plan(nodes, Own=checking(check))
    assert seen == {"seed": 7, "mode": "anything", "other": None, "types": {"other": "STRING"}}


def test_several_choices():
    many = node_class({"names": (["a", "b"], {"multi_select": True})}, OUTPUT_NODE=True)
    assert plan({"1": ("Many", {"names": {"__value__": ["b", "a"]}})}, Many=many).order == ("1",)
    (problem,) = problems({"1": ("Many", {"names": {"__value__": ["b", "x"]}})}, Many=many)
    assert problem == "node 1 (Many), input 'names': found 'x', expected one of \"a\", \"b\"."


def test_long_lists_of_choices_are_cut():
    many = node_class({"name": ([f"file{i}" for i in range(50)],)}, OUTPUT_NODE=True)
    (problem,) = problems({"1": ("Many", {"name": "fiel7"})}, Many=many)
    assert '"file11" and 38 more' in problem
    assert 'Did you mean "file7"' in problem


class Wildcard(str):
    """The usual trick of custom nodes for an input of any type."""

    def __ne__(self, other):
        return False


@pytest.mark.parametrize(
    ("output", "declared", "expected"),
    [
        ("INT", "INT", True),
        ("INT", "FLOAT", False),
        ("INT", "*", True),
        ("*", "INT", True),
        ("INT,FLOAT", "FLOAT,STRING", True),
        ("INT, FLOAT", "STRING", False),
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a"], False),
        (["a"], "COMBO", True),
        ("STRING", ["a"], False),
        ("INT", Wildcard("ANY"), True),
    ],
)
def test_types_that_match(output, declared, expected):
    assert types_match(output, declared) is expected
