"""Graphs run as in ComfyUI: each node once, lists mapped, hidden inputs given, failures named."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.executor import run_workflow
from unclip.cli.workflow.reading import parse_workflow

from ..helpers.workflow import Double, UiBuilder, catalog, node_class

NUMBER = ("Number", {"seed": 3, "strength": 0.5, "mode": "plain"})


def run(nodes, on_node=None, **classes):
    document = {
        node_id: {"class_type": class_type, "inputs": inputs}
        for node_id, (class_type, inputs) in nodes.items()
    }
    return run_workflow(parse_workflow(document, catalog(**classes)), catalog(**classes), on_node=on_node)


def seen(nodes, **classes):
    """What the Show node with id "show" saw."""
    return run(nodes, **classes)["show"]["seen"]


def test_values_flow_along_links_and_options_left_out_keep_the_functions_defaults():
    assert seen({"1": NUMBER, "show": ("Show", {"value": ["1", 1]})}) == ["3|0.5|plain|unset|False"]
    assert seen(
        {"1": NUMBER, "2": ("Double", {"value": ["1", 0]}), "show": ("Show", {"value": ["2", 0]})}
    ) == [6]


def test_each_node_runs_once_and_in_order():
    Double.calls = 0
    order = []
    nodes = {
        "show": ("Show", {"value": ["2", 0]}),
        "again": ("Show", {"value": ["2", 0]}),
        "2": ("Double", {"value": ["1", 0]}),
        "1": NUMBER,
    }
    shown = run(nodes, on_node=lambda node_id, title: order.append((node_id, title)))
    assert shown == {"show": {"seen": [6]}, "again": {"seen": [6]}}
    assert Double.calls == 1
    assert order == [("1", "Number"), ("2", "Double"), ("show", "Show"), ("again", "Show")]


def test_inference_mode_is_on():
    node = node_class(returns=("*",), go=lambda self: (torch.is_inference_mode_enabled(),))
    assert seen({"1": ("Mode", {}), "show": ("Show", {"value": ["1", 0]})}, Mode=node) == [True]
    assert not torch.is_inference_mode_enabled()


def test_results_are_dropped_when_nothing_needs_them_any_more():
    class Big:
        pass

    alive = []

    def make(self):
        big = Big()
        alive.append(weakref.ref(big))
        return (big,)

    def look(self, value):
        gc.collect()
        return ([ref() is not None for ref in alive],)

    source = node_class(returns=("BIG",), go=make)
    forget = node_class({"value": ("BIG",)}, returns=("INT",), go=lambda self, value: (1,))
    report = node_class({"value": ("INT", {})}, returns=("*",), go=look)
    nodes = {
        "1": ("Source", {}),
        "2": ("Forget", {"value": ["1", 0]}),
        "3": ("Look", {"value": ["2", 0]}),
        "show": ("Show", {"value": ["3", 0]}),
    }
    assert seen(nodes, Source=source, Forget=forget, Look=report) == [[False]]


def test_a_list_output_runs_the_next_node_for_each_entry():
    numbers = node_class(returns=("INT",), OUTPUT_IS_LIST=(True,), go=lambda self: ([1, 2, 3],))
    nodes = {
        "1": ("Numbers", {}),
        "2": ("Double", {"value": ["1", 0]}),
        "show": ("Show", {"value": ["2", 0]}),
    }
    assert seen(nodes, Numbers=numbers) == [2, 4, 6]


def test_shorter_lists_repeat_their_last_entry():
    three = node_class(returns=("INT",), OUTPUT_IS_LIST=(True,), go=lambda self: ([1, 2, 3],))
    two = node_class(returns=("INT",), OUTPUT_IS_LIST=(True,), go=lambda self: ([10, 20],))
    add = node_class(
        {"a": ("INT", {}), "b": ("INT", {}), "c": ("INT", {})},
        returns=("INT",),
        go=lambda self, a, b, c: (a + b + c,),
    )
    nodes = {
        "1": ("Three", {}),
        "2": ("Two", {}),
        "3": ("Add", {"a": ["1", 0], "b": ["2", 0], "c": 100}),
        "show": ("Show", {"value": ["3", 0]}),
    }
    assert seen(nodes, Three=three, Two=two, Add=add) == [111, 122, 123]


def test_input_is_list_takes_whole_lists_and_constants_as_lists_of_one():
    numbers = node_class(returns=("INT",), OUTPUT_IS_LIST=(True,), go=lambda self: ([1, 2, 3],))
    total = node_class(
        {"values": ("INT", {}), "scale": ("INT", {})},
        returns=("INT",),
        INPUT_IS_LIST=True,
        go=lambda self, values, scale: (sum(values) * scale[0],),
    )
    nodes = {
        "1": ("Numbers", {}),
        "2": ("Total", {"values": ["1", 0], "scale": 10}),
        "show": ("Show", {"value": ["2", 0]}),
    }
    assert seen(nodes, Numbers=numbers, Total=total) == [60]


def test_list_and_plain_outputs_side_by_side():
    both = node_class(
        {"value": ("INT", {})},
        returns=("INT", "INT"),
        OUTPUT_IS_LIST=(True, False),
        go=lambda self, value: ([value, -value], value),
    )
    numbers = node_class(returns=("INT",), OUTPUT_IS_LIST=(True,), go=lambda self: ([1, 2],))
    nodes = {"1": ("Numbers", {}), "2": ("Both", {"value": ["1", 0]})}
    classes = {"Numbers": numbers, "Both": both}
    assert seen({**nodes, "show": ("Show", {"value": ["2", 0]})}, **classes) == [1, -1, 2, -2]
    assert seen({**nodes, "show": ("Show", {"value": ["2", 1]})}, **classes) == [1, 2]


def test_an_empty_list_is_refused_unless_the_node_takes_lists():
    none = node_class(returns=("INT",), OUTPUT_IS_LIST=(True,), go=lambda self: ([],))
    count = node_class(
        {"values": ("INT", {})}, returns=("INT",), INPUT_IS_LIST=True, go=lambda self, values: (len(values),)
    )
    with pytest.raises(
        WorkflowError, match=r"node 2 \(Double\), input 'value': node 1 \(Nothing\) gave an empty list"
    ):
        run(
            {
                "1": ("Nothing", {}),
                "2": ("Double", {"value": ["1", 0]}),
                "show": ("Show", {"value": ["2", 0]}),
            },
            Nothing=none,
        )
    nodes = {
        "1": ("Nothing", {}),
        "2": ("Count", {"values": ["1", 0]}),
        "show": ("Show", {"value": ["2", 0]}),
    }
    assert seen(nodes, Nothing=none, Count=count) == [0]


def test_hidden_inputs():
    node = node_class(
        {"seed": ("INT", {})},
        returns=("*",),
        declared={
            "hidden": {"prompt": "PROMPT", "extra": "EXTRA_PNGINFO", "me": "UNIQUE_ID", "token": "AUTH"}
        },
        go=lambda self, **given: (given,),
    )
    ui = UiBuilder()
    ui.node("Hidden", 5, "fixed", outputs=("*",))
    ui.node("Show", inputs={"value": "*"})
    ui.link(1, 0, 2, "value")
    classes = catalog(Hidden=node)
    (given,) = run_workflow(parse_workflow(ui.json(), classes), classes)["2"]["seen"]
    assert given["seed"] == 5
    assert given["me"] == "1"
    assert given["token"] is None
    assert given["prompt"]["1"] == {
        "class_type": "Hidden",
        "inputs": {"seed": 5},
        "_meta": {"title": "Hidden"},
    }
    assert given["extra"] == {"workflow": ui.json()}


def test_without_a_ui_form_there_is_no_pnginfo():
    node = node_class(
        returns=("*",), declared={"hidden": {"extra": "EXTRA_PNGINFO"}}, go=lambda self, extra: (extra,)
    )
    assert seen({"1": ("Hidden", {}), "show": ("Show", {"value": ["1", 0]})}, Hidden=node) == [None]


def test_unknown_inputs_are_not_given_to_the_function():
    nodes = {"1": ("Number", {**NUMBER[1], "from_the_future": 1}), "show": ("Show", {"value": ["1", 0]})}
    assert seen(nodes) == [3]


def failing(error):
    def go(self):
        raise error

    return node_class(returns=("INT",), go=go)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("steps: found 0, expected 1"), 'node 1 (Fail "Prior"): steps: found 0, expected 1'),
        (FileNotFoundError("no fox.png"), 'node 1 (Fail "Prior"): no fox.png'),
        (KeyError("x"), "node 1 (Fail \"Prior\"): KeyError: 'x'"),
        (
            RuntimeError("CUDA out of memory. Tried 2 GiB"),
            'node 1 (Fail "Prior"): out of memory (CUDA out of memory. Tried 2 GiB). '
            "Use a smaller batch or size, or a GPU with more memory.",
        ),
    ],
)
def test_a_failing_node_is_named(error, message):
    document = {
        "1": {"class_type": "Fail", "inputs": {}, "_meta": {"title": "Prior"}},
        "2": {"class_type": "Show", "inputs": {"value": ["1", 0]}},
    }
    classes = catalog(Fail=failing(error))
    with pytest.raises(WorkflowError) as caught:
        run_workflow(parse_workflow(document, classes), classes)
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_ctrl_c_is_not_taken_for_a_failure():
    with pytest.raises(KeyboardInterrupt):
        run({"1": ("Fail", {}), "show": ("Show", {"value": ["1", 0]})}, Fail=failing(KeyboardInterrupt()))


def test_a_node_that_returns_too_little():
    short = node_class(returns=("INT", "INT"), go=lambda self: (1,))
    with pytest.raises(WorkflowError, match=r"node 1 .*returned tuple, expected 2 values"):
        run({"1": ("Short", {}), "show": ("Show", {"value": ["1", 0]})}, Short=short)


def test_result_and_report_together():
    both = node_class(
        returns=("INT",), OUTPUT_NODE=True, go=lambda self: {"ui": {"text": ["hi"]}, "result": (4,)}
    )
    shown = run({"1": ("Both", {}), "show": ("Show", {"value": ["1", 0]})}, Both=both)
    assert shown == {"1": {"text": ["hi"]}, "show": {"seen": [4]}}


def test_nodes_that_expand_need_comfyui():
    node = node_class(OUTPUT_NODE=True, go=lambda self: {"expand": {}})
    with pytest.raises(WorkflowError, match="run only in ComfyUI; use --server"):
        run({"1": ("Expand", {})}, Expand=node)
