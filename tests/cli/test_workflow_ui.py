"""UI-form workflows become the graph that ComfyUI's frontend would queue."""

from __future__ import annotations

import pytest
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.reading import parse_workflow
from unclip.cli.workflow.ui_workflow import _bypass_slot
from unclip.cli.workflow.validation import validate

from ..helpers.workflow import UiBuilder, catalog, node_class

MUTED, BYPASSED = 2, 4


def chain(*between, **last):
    """Number → nodes by (type, mode, values) → Show, each by its first input and output."""
    ui = UiBuilder()
    at = ui.node("Number", 3, "fixed", 0.5, "plain", "x", False, outputs=("INT", "STRING"))
    for class_type, mode, values in between:
        name = "" if class_type == "Reroute" else "value"
        kind = "*" if class_type == "Reroute" else "INT"
        following = ui.node(class_type, *values, inputs={name: kind}, outputs=(kind,), mode=mode)
        ui.link(at, 0, following, name)
        at = following
    show = ui.node("Show", inputs={"value": last.get("kind", "*")})
    ui.link(at, 0, show, "value")
    return ui, str(show)


def graph(ui, **more):
    return parse_workflow(ui.json() if isinstance(ui, UiBuilder) else ui, catalog(**more))


def test_constants_links_and_titles():
    ui, show = chain(("Double", 0, []))
    ui.nodes[1]["title"] = "Twice"
    made = graph(ui)
    assert made.nodes["1"].inputs == {
        "seed": 3,
        "strength": 0.5,
        "mode": "plain",
        "label": "x",
        "loud": False,
    }
    assert made.nodes["2"].inputs == {"value": ["1", 0]}
    assert made.nodes["2"].title == "Twice"
    assert made.nodes["1"].title == "Number"
    assert made.nodes[show].inputs == {"value": ["2", 0]}
    assert made.ui["version"] == 0.4


def test_a_node_without_a_title_has_the_display_name_of_its_class():
    ui, _ = chain(("Double", 0, []))
    ui.nodes[0]["title"] = "Mine"
    made = parse_workflow(ui.json(), catalog({"Double": "Times Two", "Number": "A Number"}))
    assert [node.title for node in made.nodes.values()] == ["Mine", "Times Two", "Show"]


def test_the_graph_cannot_be_changed():
    made = graph(chain()[0])
    with pytest.raises(TypeError):
        made.nodes["1"].inputs["seed"] = 4
    with pytest.raises(TypeError):
        made.nodes["9"] = None


def test_notes_and_reroutes_are_not_in_the_graph():
    ui, show = chain(("Reroute", 0, []), ("Reroute", 0, []))
    ui.node("MarkdownNote", "# hello")
    ui.node("Note", "hello")
    made = graph(ui)
    assert set(made.nodes) == {"1", show}
    assert made.nodes[show].inputs == {"value": ["1", 0]}


def test_links_of_the_object_form():
    ui, show = chain()
    document = ui.json()
    document["links"] = [
        {
            "id": i,
            "origin_id": source,
            "origin_slot": slot,
            "target_id": target,
            "target_slot": index,
            "type": kind,
        }
        for i, source, slot, target, index, kind in document["links"]
    ]
    assert graph(document).nodes[show].inputs == {"value": ["1", 0]}


def test_a_converted_widget_takes_its_link_and_the_others_keep_their_places():
    ui = UiBuilder()
    source = ui.node("Number", 1, "fixed", 0.1, "plain", "x", False, outputs=("INT", "STRING"))
    target = ui.node(
        "Number",
        2,
        "randomize",
        0.2,
        "fancy",
        "y",
        True,
        widget_inputs={"seed": "INT", "label": "STRING"},
        outputs=("INT", "STRING"),
    )
    ui.link(source, 0, target, "seed")
    made = graph(ui)
    assert made.nodes["2"].inputs == {
        "seed": ["1", 0],
        "strength": 0.2,
        "mode": "fancy",
        "label": "y",
        "loud": True,
    }


@pytest.mark.parametrize("reroute", [False, True])
def test_a_primitive_gives_its_value(reroute):
    ui = UiBuilder()
    primitive = ui.node("PrimitiveNode", 42, "randomize", outputs=("INT",))
    target = ui.node("Number", 2, "fixed", 0.2, "plain", "y", True, widget_inputs={"seed": "INT"})
    if reroute:
        through = ui.node("Reroute", inputs={"": "*"}, outputs=("INT",))
        ui.link(primitive, 0, through, "")
        primitive = through
    ui.link(primitive, 0, target, "seed")
    made = graph(ui)
    assert set(made.nodes) == {"2"}
    assert made.nodes["2"].inputs["seed"] == 42


def test_values_that_are_lists_are_no_links():
    many = node_class({"names": (["a", "b"], {"multi_select": True})})
    ui = UiBuilder()
    ui.node("Many", ["a", "b"])
    assert graph(ui, Many=many).nodes["1"].inputs == {"names": {"__value__": ["a", "b"]}}


def test_a_muted_source_leaves_its_targets_without_the_link():
    ui, show = chain(("Double", MUTED, []))
    made = graph(ui)
    assert set(made.nodes) == {"1", show}
    assert made.nodes[show].inputs == {}
    assert made.dropped[show, "value"] == "node 2 (Double) is muted"
    assert made.inactive == {"2": "muted"}


def test_a_muted_node_may_be_unknown():
    ui, _ = chain()
    ui.node("SomebodyElses", mode=MUTED)
    assert "4" not in graph(ui).nodes


def test_a_converted_widget_keeps_its_own_value_when_its_source_is_muted():
    ui = UiBuilder()
    source = ui.node("Number", 1, "fixed", 0.1, "plain", "x", False, outputs=("INT", "STRING"), mode=MUTED)
    target = ui.node("Number", 2, "fixed", 0.2, "plain", "y", True, widget_inputs={"seed": "INT"})
    ui.link(source, 0, target, "seed")
    assert graph(ui).nodes["2"].inputs["seed"] == 2


def test_a_bypassed_node_passes_its_input_through():
    ui, show = chain(("Double", BYPASSED, []), kind="INT")
    made = graph(ui)
    assert made.nodes[show].inputs == {"value": ["1", 0]}
    assert made.inactive == {"2": "bypassed"}


MIX = node_class(
    {"a": ("STRING", {"forceInput": True}), "b": ("INT", {"forceInput": True})}, returns=("INT",)
)


def bypassed_mix(target_kind="INT", connect=("a", "b")):
    ui = UiBuilder()
    ui.node("Number", 3, "fixed", 0.5, "plain", "x", False, outputs=("INT", "STRING"))
    ui.node("Mix", inputs={"a": "STRING", "b": "INT"}, outputs=("INT",), mode=BYPASSED)
    show = ui.node("Show", inputs={"value": target_kind})
    if "a" in connect:
        ui.link(1, 1, 2, "a")
    if "b" in connect:
        ui.link(1, 0, 2, "b")
    ui.link(2, 0, show, "value")
    return graph(ui, Mix=MIX), str(show)


def test_a_bypassed_node_takes_the_input_of_the_targets_type():
    made, show = bypassed_mix()
    assert made.nodes[show].inputs == {"value": ["1", 0]}


def test_a_bypassed_node_takes_the_same_slot_for_a_target_of_any_type():
    made, show = bypassed_mix("*")
    assert made.nodes[show].inputs == {"value": ["1", 1]}


def test_a_bypassed_node_with_nothing_to_pass_drops_the_link():
    made, show = bypassed_mix(connect=("a",))
    assert made.nodes[show].inputs == {}
    assert made.dropped[show, "value"] == "nothing is connected to input 'b' of node 2 (Mix)"
    made, show = bypassed_mix("LATENT")
    assert made.dropped[show, "value"] == "node 2 (Mix) is bypassed and has no input of type LATENT"


def problems(document, **more):
    with pytest.raises(WorkflowError) as caught:
        graph(document, **more)
    return caught.value.problems


def test_unknown_nodes_are_all_named_with_near_names():
    ui, _ = chain()
    ui.node("Nunber", title="My number")
    ui.node("KSamplerFromElsewhere")
    first, second = problems(ui)
    assert first == (
        'node 3 (Nunber "My number"): this installation has no node class \'Nunber\'. Did you mean "Number"?'
    )
    assert second.startswith("node 4 (KSamplerFromElsewhere): this installation has no node class")
    assert "Install the node pack it comes from" in second


def test_group_nodes_and_dynamic_inputs_are_refused():
    ui, _ = chain()
    ui.node("workflow>Pair")
    ui.node("Dynamic")
    dynamic = node_class({"mode": ("COMFY_DYNAMICCOMBO_V3", {})})
    group, changing = problems(ui, Dynamic=dynamic)
    assert group.startswith("node 3 (workflow>Pair): group nodes are not supported")
    assert changing.startswith("node 4 (Dynamic): its inputs change with their values")


CODEC = [
    {"key": "auto", "inputs": {"required": {}}},
    {"key": "h264", "inputs": {"required": {}, "optional": {"crf": ["FLOAT", {"default": 23.0}]}}},
]
DEEPER = [{"key": "mp4", "inputs": {"required": {"codec": ["COMFY_DYNAMICCOMBO_V3", {"options": CODEC}]}}}]
ANY_NUMBER = [{"key": "list", "inputs": {"required": {"pictures": ["COMFY_AUTOGROW_V3", {}]}}}]


def encoder(*values, options=CODEC):
    ui, _ = chain()
    ui.node("Encode", "clip", *values)
    kinds = {
        "name": ("STRING", {}),
        "codec": ("COMFY_DYNAMICCOMBO_V3", {"options": options}),
        "rate": ("INT", {}),
    }
    return ui, {"Encode": node_class(kinds)}


def test_a_choice_that_could_bring_inputs_is_taken_where_it_brings_none():
    ui, classes = encoder("auto", 7)
    assert graph(ui, **classes).nodes["3"].inputs == {"name": "clip", "codec": "auto", "rate": 7}


def test_inputs_that_a_choice_brings_stand_behind_it_and_are_named_after_it():
    ui, classes = encoder("h264", 18.0, 7)
    found = graph(ui, **classes).nodes["3"].inputs
    assert found == {"name": "clip", "codec": "h264", "codec.crf": 18.0, "rate": 7}
    ui, classes = encoder("mp4", "h264", 18.0, 7, options=DEEPER)
    deeper = graph(ui, **classes).nodes["3"].inputs
    assert deeper == {
        "name": "clip",
        "codec": "mp4",
        "codec.codec": "h264",
        "codec.codec.crf": 18.0,
        "rate": 7,
    }
    ui, classes = encoder("mp4", "auto", 7, options=DEEPER)
    assert graph(ui, **classes).nodes["3"].inputs == {
        "name": "clip",
        "codec": "mp4",
        "codec.codec": "auto",
        "rate": 7,
    }


def test_what_a_choice_brings_moves_the_choices_behind_it():
    """As in SaveVideo: read too early, the second choice would be the value of what the first one brings."""
    ui, _ = chain()
    ui.node("Encode", "mp4", "h264", 18.0, "auto")
    kinds = {
        "format": ("COMFY_DYNAMICCOMBO_V3", {"options": DEEPER}),
        "codec": ("COMFY_DYNAMICCOMBO_V3", {"options": CODEC}),
    }
    found = graph(ui, Encode=node_class(kinds)).nodes["3"].inputs
    first = {"format": "mp4", "format.codec": "h264", "format.codec.crf": 18.0}
    assert found == {**first, "codec": "auto"}


def test_a_choice_that_brings_any_number_of_inputs_is_refused():
    ui, classes = encoder("list", 7, options=ANY_NUMBER)
    (problem,) = problems(ui, **classes)
    assert problem.startswith("node 3 (Encode): its inputs change with their values")


STALE = {
    "not listed": (lambda ui: ui.links.clear(), "its link 1 is not among the workflow's links"),
    "a null in its place": (
        lambda ui: ui.links.__setitem__(0, None),
        "its link 1 is not among the workflow's links",
    ),
    "from a node that is gone": (
        lambda ui: ui.links[0].__setitem__(1, 77),
        "its link comes from node 77, which is not in the workflow",
    ),
}


@pytest.mark.parametrize("stale", STALE)
def test_a_stale_link_leaves_an_input_empty_and_a_required_one_is_an_error(stale):
    ui, show = chain()
    change, reason = STALE[stale]
    change(ui)
    made = graph(ui)
    assert made.nodes[show].inputs == {} and made.dropped[show, "value"] == reason
    show_class = node_class({"value": ("*",)}, OUTPUT_NODE=True)
    with pytest.raises(WorkflowError, match=f"input 'value': is required, but {reason}\\. Connect it"):
        validate(made, catalog(Show=show_class))


@pytest.mark.parametrize("stale", STALE)
def test_a_stale_link_on_a_widget_leaves_it_its_own_value(stale):
    ui, _ = chain()
    number = ui.node("Number", 8, "fixed", 0.5, "plain", "x", False, widget_inputs={"seed": "INT"})
    ui.nodes[number - 1]["inputs"][0]["link"] = 1
    STALE[stale][0](ui)
    assert graph(ui).nodes[str(number)].inputs["seed"] == 8


def test_reroutes_in_a_circle():
    ui = UiBuilder()
    first = ui.node("Reroute", inputs={"": "*"}, outputs=("*",))
    second = ui.node("Reroute", inputs={"": "*"}, outputs=("*",))
    show = ui.node("Show", inputs={"value": "*"})
    ui.link(first, 0, second, "")
    ui.link(second, 0, first, "")
    ui.link(second, 0, show, "value")
    (problem,) = problems(ui)
    assert "reroutes or bypassed nodes form a loop" in problem


def test_links_of_an_unknown_form():
    (problem,) = problems({"nodes": [], "links": [[1, 2]]})
    assert problem == "workflow: links: expected [id, source, slot, target, slot, type], found [1, 2]."


@pytest.mark.parametrize(
    ("inputs", "outputs", "slot", "kind", "expected"),
    [
        (["INT", "INT"], ["INT", "INT"], 1, "INT", 1),  # the same place
        (["STRING", "INT,FLOAT", "INT"], ["INT"], 0, "INT", 2),  # exactly the type, before one that fits
        (["STRING", "INT,FLOAT"], ["INT"], 0, "INT", 1),  # one that fits
        (["STRING", "IMAGE"], ["LATENT"], 0, "IMAGE", 1),  # exactly the type, whatever the output was
        (["STRING", "IMAGE"], ["IMAGE", "IMAGE", "IMAGE"], 2, "*", 0),  # any type, fewer inputs than outputs
        (["MODEL"], ["LATENT"], 0, "LATENT", None),
        ([], ["INT"], 0, "INT", None),
    ],
)
def test_which_input_stands_in_for_a_bypassed_output(inputs, outputs, slot, kind, expected):
    node = {
        "inputs": [{"type": type_} for type_ in inputs],
        "outputs": [{"type": type_} for type_ in outputs],
    }
    assert _bypass_slot(node, slot, kind) == expected
