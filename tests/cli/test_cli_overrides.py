"""``--set NODE.INPUT=VALUE`` finds its node, reads its value, and keeps the UI form true."""

from __future__ import annotations

import pytest
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.overrides import Override, apply_overrides, parse_override
from unclip.cli.workflow.reading import parse_workflow

from ..helpers.workflow import UiBuilder, catalog, node_class


def api():
    number = {"seed": 3, "strength": 0.5, "mode": "plain", "label": "x"}
    return parse_workflow(
        {
            "1": {"class_type": "Number", "inputs": number, "_meta": {"title": "First v1.5"}},
            "2": {"class_type": "Number", "inputs": number, "_meta": {"title": "Second"}},
            "3": {"class_type": "Show", "inputs": {"value": ["1", 0]}},
        },
        catalog(),
    )


def changed(*arguments, workflow=None):
    return apply_overrides(workflow or api(), [parse_override(text) for text in arguments], catalog())


def refused(*arguments, workflow=None):
    with pytest.raises(WorkflowError) as caught:
        changed(*arguments, workflow=workflow)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("3.steps=20", Override("3", "steps", "20")),
        ("Decode v1.5.seed=7", Override("Decode v1.5", "seed", "7")),
        ("2.text=a=b.c", Override("2", "text", "a=b.c")),
        ("2.text=", Override("2", "text", "")),
        ("2.text= two  blanks ", Override("2", "text", " two  blanks ")),
    ],
)
def test_reading_the_option(argument, expected):
    assert parse_override(argument) == expected


@pytest.mark.parametrize("argument", ["steps=20", "3.steps", "3.=4", ".steps=4", ""])
def test_an_option_of_another_form(argument):
    with pytest.raises(WorkflowError, match=r"expected NODE\.INPUT=VALUE, for example --set 3\.steps=20"):
        parse_override(argument)


def test_by_id_by_title_and_by_class():
    made = changed("1.seed=4", "First v1.5.strength=1", "Show.value=5")
    assert made.nodes["1"].inputs["seed"] == 4
    assert made.nodes["1"].inputs["strength"] == 1
    assert made.nodes["3"].inputs["value"] == 5
    assert api().nodes["1"].inputs["seed"] == 3


def test_the_last_of_several_wins():
    assert changed("1.seed=4", "1.seed=5").nodes["1"].inputs["seed"] == 5


def test_a_name_of_several_nodes():
    message = refused("Number.seed=4")
    assert message == (
        '--set Number: 2 nodes have this class: node 1 (Number "First v1.5"), node 2 (Number "Second"). '
        "Use the id."
    )


def test_a_name_of_no_node():
    message = refused("Secnod.seed=4")
    assert message.startswith("--set Secnod: the workflow has no such node; it has node 1 (Number")
    assert message.endswith('Did you mean "Second"?')


def test_an_input_that_the_node_lacks():
    assert refused("1.sed=4") == (
        '--set 1.sed: node 1 (Number "First v1.5") has no such input; it has "seed", "strength", "mode", '
        '"label", "loud". Did you mean "seed"?'
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("1.seed=12", 12),
        ("1.strength=2.5", 2.5),
        ("1.loud=true", True),
        ("1.mode=fancy", "fancy"),
        ('1.mode="fancy"', "fancy"),
        ("1.label=fox", "fox"),
        ("1.label=1e3", "1e3"),
        ("1.label=true", "true"),
        ("1.label=[1, 2]", "[1, 2]"),
        ('1.label="quoted \\" text"', 'quoted " text'),
        ('1.seed=["2", 1]', ["2", 1]),
        ('3.value=["a", "b"]', {"__value__": ["a", "b"]}),
    ],
)
def test_values(argument, expected):
    node_id, name = argument.split("=")[0].split(".")
    value = changed(argument).nodes[node_id].inputs[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("true", "True", "TRUE", '"true"', "yes", "On", "1"), True),
        (("false", "False", "FALSE", '"False"', "no", "OFF", "0"), False),
    ],
)
def test_a_switch_is_set_by_a_word(words, expected):
    for word in words:
        assert changed(f"1.loud={word}").nodes["1"].inputs["loud"] is expected, word
    assert changed('1.loud=["2", 1]').nodes["1"].inputs["loud"] == ["2", 1]


@pytest.mark.parametrize("word", ["maybe", "", "2", "null", "[]", "fasle"])
def test_another_word_for_a_switch_names_the_input(word):
    assert refused(f"1.loud={word}") == (
        f"--set 1.loud: found {word!r}, expected true or false (yes, no, on, off, 1 and 0 do as well)."
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("1.seed=55.9", "found '55.9', expected a whole number."),
        ("1.seed=1e400", "found '1e400', expected a whole number."),
        ("1.seed=true", "found 'true', expected a number."),
        ("1.strength=false", "found 'false', expected a number."),
    ],
)
def test_numbers_that_comfyui_would_change_without_a_word(argument, expected):
    assert refused(argument) == f"--set {argument.split('=')[0]}: {expected}"


def test_a_choice_that_looks_like_a_number():
    sized = node_class({"size": (["64", "256"],)})
    workflow = parse_workflow({"1": {"class_type": "Sized", "inputs": {"size": "64"}}}, catalog())
    made = apply_overrides(workflow, [parse_override("1.size=256")], catalog(Sized=sized))
    assert made.nodes["1"].inputs["size"] == "256"


def ui_form(**options):
    ui = UiBuilder()
    ui.node("Number", 3, "fixed", 0.5, "plain", "x", False, outputs=("INT", "STRING"))
    ui.node("Number", 4, "fixed", 0.5, "plain", "y", False, widget_inputs={"label": "STRING"}, **options)
    ui.link(1, 1, 2, "label")
    return parse_workflow(ui.json(), catalog())


def test_the_ui_form_shows_the_new_value():
    before = ui_form()
    made = changed("1.strength=0.75", workflow=before)
    assert made.ui["nodes"][0]["widgets_values"] == [3, "fixed", 0.75, "plain", "x", False]
    assert before.ui["nodes"][0]["widgets_values"][2] == 0.5
    assert parse_workflow(made.ui, catalog()).nodes == made.nodes


def test_a_value_in_place_of_a_link_removes_the_link_from_the_ui_form():
    made = changed("2.label=new", workflow=ui_form())
    assert made.nodes["2"].inputs["label"] == "new"
    assert made.ui["links"] == []
    assert made.ui["nodes"][0]["outputs"][1]["links"] == []
    assert made.ui["nodes"][1]["inputs"][0]["link"] is None
    assert parse_workflow(made.ui, catalog()).nodes["2"].inputs == made.nodes["2"].inputs


def test_what_the_ui_form_cannot_show_drops_it():
    assert changed('2.seed=["1", 0]', workflow=ui_form()).ui is None


def coded(format_, *values):
    """A node with a choice that brings others, and its catalogue."""
    crf = {"optional": {"crf": ("FLOAT", {"default": 23.0, "min": 0.0, "max": 51.0})}}
    codec = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "auto"}, {"key": "h264", "inputs": crf}]}]
    options = [{"key": key, "inputs": {"optional": {"codec": codec}}} for key in ("mp4", "mkv")]
    video = node_class({"format": ("COMFY_DYNAMICCOMBO_V3", {"options": [*options, {"key": "none"}]})})
    known, ui = catalog(Video=video), UiBuilder()
    ui.node("Video", format_, *values)
    return parse_workflow(ui.json(), known), known


@pytest.mark.parametrize("node", ["1", "Video"])
def test_inputs_that_a_choice_brings_are_set_by_their_name_with_dots(node):
    workflow, known = coded("mp4", "h264", 23)
    made = apply_overrides(workflow, [parse_override(f"{node}.format.codec.crf=10")], known)
    assert made.nodes["1"].inputs["format.codec.crf"] == 10
    assert made.ui["nodes"][0]["widgets_values"] == ["mp4", "h264", 10]
    with pytest.raises(
        WorkflowError, match=r'has no such input; it has "format", "format\.codec", "format\.codec'
    ):
        apply_overrides(workflow, [parse_override(f"{node}.format.codec.crt=10")], known)


@pytest.mark.parametrize(
    ("argument", "stored"),
    [("1.format=mkv", ["mkv", "h264", 23]), ("1.format=none", None), ("1.format.codec=auto", None)],
)
def test_a_choice_that_moves_the_other_widgets_drops_the_ui_form(argument, stored):
    workflow, known = coded("mp4", "h264", 23)
    made = apply_overrides(workflow, [parse_override(argument)], known)
    assert (made.ui and made.ui["nodes"][0]["widgets_values"]) == stored


def test_a_node_that_does_not_run():
    assert refused("2.seed=1", workflow=ui_form(mode=2)) == (
        "--set 2: node 2 is muted and does not run; enable it."
    )
