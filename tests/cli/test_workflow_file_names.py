"""File names with values of the workflow in them, as ComfyUI's page replaces them."""

from __future__ import annotations

from datetime import datetime

import pytest
from unclip.cli.workflow import parse_workflow
from unclip.cli.workflow.file_names import with_file_names
from unclip.cli.workflow.overrides import apply_overrides, parse_override

from ..helpers.workflow import UiBuilder, catalog, node_class

NOW = datetime(2026, 3, 7, 15, 4, 9)
CATALOG = catalog(
    SaveImage=node_class({"filename_prefix": ("STRING", {})}, OUTPUT_NODE=True),
    SaveElsewhere=node_class({"filename_prefix": ("STRING", {})}, OUTPUT_NODE=True),
)


def workflow(prefix, class_type="SaveImage", **number):
    ui = UiBuilder()
    ui.node("Number", 7, "fixed", 0.25, "fancy", 'a/b:c"d', True, **number)
    ui.node(class_type, prefix)
    return parse_workflow(ui.json(), CATALOG)


def named(prefix, **more):
    warnings = []
    made = with_file_names(workflow(prefix, **more), now=NOW, warn=warnings.append)
    return made.nodes["2"].inputs["filename_prefix"], warnings


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("%date:yyyy-MM-dd%/fox", "2026-03-07/fox"),
        ("%date:yy-M-d h-m-s%", "26-3-7 15-4-9"),
        ("%date:hh-mm-ss%", "15-04-09"),
        ("%date:dd.MM%", "%date:dd.MM%"),  # to the page the widget "MM" of a node "date:dd"
        ("%date:dd.MM.yyyy%", "07"),  # the page reads up to the first dot
        ("seed %Number.seed%, %Number.mode%", "seed 7, fancy"),
        ("%Number.strength% %Number.loud%", "0.25 true"),
        ("%Number.label%", "a_b_c_d"),
        ("%width%x%height% %year%", "%width%x%height% %year%"),
        ("100% of %Number.seed%", "100% of %Number.seed%"),  # "% of %" is a name to the page
    ],
)
def test_names_are_replaced(prefix, expected):
    assert named(prefix)[0] == expected


def test_a_node_is_found_by_its_search_name_then_by_its_title():
    assert named("%Mine.seed%", title="Mine")[0] == "7"
    assert named("%S.seed%", properties={"Node name for S&R": "S"})[0] == "7"


@pytest.mark.parametrize("token", ["%Gone.seed%", "%Number.gone%", "%nothing%"])
def test_names_that_nothing_is_known_for_stay_with_a_warning(token):
    found, warnings = named(f"a {token}")
    assert found == f"a {token}"
    assert warnings == [f"node 2 (SaveImage), input 'filename_prefix': nothing is known as {token}."]


def test_a_changed_value_is_the_one_in_the_name():
    made = apply_overrides(workflow("%Number.seed%"), [parse_override("1.seed=9")], CATALOG)
    assert with_file_names(made).nodes["2"].inputs["filename_prefix"] == "9"
    changed = apply_overrides(workflow("x"), [parse_override("2.filename_prefix=n%Number.seed%")], CATALOG)
    assert with_file_names(changed).nodes["2"].inputs["filename_prefix"] == "n7"


def test_only_saving_nodes_of_a_ui_form_are_asked():
    assert named("%Number.seed%", class_type="SaveElsewhere")[0] == "%Number.seed%"
    api = {"2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "%date:yyyy%"}}}
    made = parse_workflow(api, CATALOG)
    assert with_file_names(made) is made


def test_nodes_that_do_not_run_have_values_too():
    assert named("%Number.seed%", mode=2)[0] == "7"
    ui = UiBuilder()
    ui.node("SaveImage", "%My seed.value%")
    ui.node("PrimitiveNode", 12, "fixed", title="My seed")
    made = with_file_names(parse_workflow(ui.json(), CATALOG))
    assert made.nodes["1"].inputs["filename_prefix"] == "12"
