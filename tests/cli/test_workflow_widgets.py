"""Which stored value of a UI node belongs to which input."""

from __future__ import annotations

import pytest
from unclip.cli.workflow.specs import spec_of_class, spec_of_object_info
from unclip.cli.workflow.widgets import widget_values, with_widget_value

from ..helpers.workflow import Number, node_class


def spec(required=None, optional=None):
    return spec_of_class("Made", node_class(required, optional))


def values(declared, stored):
    return widget_values({"widgets_values": stored}, declared)


INT = ("INT", {"default": 7})
TEXT = ("STRING", {"default": ""})
CHOICE = (["plain", "fixed"], {})

SEEDED = spec({"seed": INT, "steps": ("INT", {"default": 20})}, {"text": TEXT})


def test_the_control_after_a_seed_is_no_input():
    assert values(SEEDED, [5, "fixed", 30, "fox"]) == {"seed": 5, "steps": 30, "text": "fox"}


@pytest.mark.parametrize("control", ["fixed", "increment", "decrement", "randomize"])
def test_every_control_value_is_skipped(control):
    assert values(SEEDED, [5, control, 30, "fox"])["steps"] == 30


def test_a_file_without_the_control_reads_the_same():
    assert values(SEEDED, [5, 30, "fox"]) == {"seed": 5, "steps": 30, "text": "fox"}


def test_a_file_from_before_the_last_inputs_gets_their_defaults():
    assert values(SEEDED, [5, "randomize"]) == {"seed": 5, "steps": 20, "text": ""}
    assert values(SEEDED, None) == {"seed": 7, "steps": 20, "text": ""}


def test_noise_seed_and_the_option_have_controls_and_other_integers_do_not():
    declared = spec({"noise_seed": INT, "a": ("INT", {"control_after_generate": True}), "steps": INT})
    assert values(declared, [1, "fixed", 2, "increment", 3]) == {"noise_seed": 1, "a": 2, "steps": 3}
    plain = spec({"steps": INT, "mode": CHOICE})
    assert values(plain, [1, "fixed"]) == {"steps": 1, "mode": "fixed"}


def test_a_choice_named_like_a_control_is_kept_where_the_list_has_no_room_for_a_control():
    declared = spec({"seed": INT, "mode": CHOICE})
    assert values(declared, [1, "fixed"]) == {"seed": 1, "mode": "fixed"}
    assert values(declared, [1, "fixed", "plain"]) == {"seed": 1, "mode": "plain"}


def test_a_controlled_choice_may_store_a_filter_too():
    declared = spec({"mode": (["a", "b"], {"control_after_generate": True}), "text": TEXT})
    assert values(declared, ["b", "increment-wrap", "", "fox"]) == {"mode": "b", "text": "fox"}
    assert values(declared, ["b", "fixed", "fox"]) == {"mode": "b", "text": "fox"}


def test_the_upload_button_stores_a_value_after_the_required_widgets():
    load = spec(
        {"image": (["a.png"], {"image_upload": True}), "channel": (["alpha", "red"],)}, {"text": TEXT}
    )
    expected = {"image": "a.png", "channel": "red", "text": "fox"}
    assert values(load, ["a.png", "red", "image", "fox"]) == expected
    assert values(load, ["a.png", "red", "fox"]) == expected


def test_inputs_without_a_widget_store_nothing():
    declared = spec(
        {"model": ("MODEL",), "steps": INT, "forced": ("INT", {"forceInput": True})}, {"text": TEXT}
    )
    assert values(declared, [3, "fox"]) == {"steps": 3, "text": "fox"}


def test_old_frontends_stored_a_value_for_inputs_that_are_sockets_now():
    declared = spec({"forced": ("INT", {"forceInput": True}), "steps": INT, "text": TEXT})
    assert values(declared, [0, 3, "fox"]) == {"steps": 3, "text": "fox"}


def test_values_by_name():
    assert values(SEEDED, {"steps": 9, "seed": 1, "preview": {}}) == {"seed": 1, "steps": 9, "text": ""}


def test_defaults_of_each_type():
    declared = spec(
        {
            "i": ("INT",),
            "f": ("FLOAT", {}),
            "s": ("STRING", {}),
            "b": ("BOOLEAN", {}),
            "c": (["x", "y"],),
            "n": ("COMBO", {"options": ["p", "q"]}),
            "empty": ([],),
        }
    )
    assert values(declared, []) == {
        "i": 0,
        "f": 0.0,
        "s": "",
        "b": False,
        "c": "x",
        "n": "p",
        "empty": None,
    }


def test_a_servers_object_info_says_the_same_as_the_class():
    declared = Number.INPUT_TYPES()
    from_server = spec_of_object_info(
        "Number",
        {
            "input": {k: {n: list(v) for n, v in part.items()} for k, part in declared.items()},
            "output": ["INT", "STRING"],
            "output_name": ["number", "words"],
            "output_node": False,
        },
    )
    stored = {"widgets_values": [3, "fixed", 0.25, "fancy", "fox", True]}
    assert widget_values(stored, from_server) == widget_values(stored, spec_of_class("Number", Number))
    assert from_server.outputs == ("INT", "STRING")


def test_setting_a_widget_leaves_the_others_and_the_control_in_place():
    node = {"widgets_values": [5, "fixed", 30, "fox"]}
    assert with_widget_value(node, SEEDED, "steps", 4)["widgets_values"] == [5, "fixed", 4, "fox"]
    assert node["widgets_values"] == [5, "fixed", 30, "fox"]


def test_setting_a_widget_that_is_not_stored_fills_the_ones_before_it():
    assert with_widget_value({"widgets_values": [5]}, SEEDED, "text", "owl")["widgets_values"] == [
        5,
        20,
        "owl",
    ]
    assert with_widget_value({"widgets_values": {"seed": 1}}, SEEDED, "text", "owl")["widgets_values"] == {
        "seed": 1,
        "text": "owl",
    }
