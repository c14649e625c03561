"""What the server refuses before it runs anything: each wrong input of each node, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

from .graphs import OUTPUT, graph_of
from .server import ServerError

OTHER_TYPE = {"IMAGE": "SolidMask"}  # what makes something else than a socket takes; elsewhere a picture
MISSING = object()
NUMBERS = ("INT", "FLOAT")


@pytest.fixture(scope="module")
def info(server):
    return server.get_json("/object_info")


def test_the_server_offers_these_nodes(info):
    ours = {name for name, node in info.items() if node["python_module"] == "custom_nodes.unclip"}
    assert ours == set(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("class_type", NODE_CLASS_MAPPINGS)
def test_every_wrong_input_of_a_node_is_refused_by_name(server, info, class_type):
    tried = {}
    for name, value, kind in wrong_inputs(info[class_type]):
        prompt = graph_of(info, class_type)
        if value is MISSING:
            del prompt[class_type]["inputs"][name]
        else:
            prompt[class_type]["inputs"][name] = value
            if isinstance(value, list):
                prompt = {**feeding(info, value[0]), **prompt}
        tried[name, kind] = refusal(server, prompt)
    # ComfyUI blames all inputs that a node checks together; the sentence names the one.
    together = own_check(class_type)
    given = graph_of(info, class_type)[class_type]["inputs"]
    expected = {
        (name, kind): {
            class_type: [(kind, each) for each in sorted({name, *(together & set(given))})]
            if kind == "custom_validation_failed"
            else [(kind, name)]
        }
        for name, kind in tried
    }
    assert tried == expected
    assert len(tried) > 1


def test_several_wrong_inputs_are_refused_together(server, info):
    prompt = graph_of(info, "UnCLIPDecode")
    prompt["UnCLIPDecode"]["inputs"] |= {"steps": 0, "sampler": "dpm", "guidance_scale": "much"}
    prompt["UnCLIPLoadBundle"]["inputs"]["bundle"] = "nobody/knows"
    found = refusal(server, prompt)
    assert found["UnCLIPLoadBundle"] == [("custom_validation_failed", "bundle")]
    assert set(found["UnCLIPDecode"]) == {
        ("value_smaller_than_min", "steps"),
        ("value_not_in_list", "sampler"),
        ("invalid_input_type", "guidance_scale"),
    }


def own_check(class_type: str) -> set[str]:
    """The inputs that a node checks itself."""
    check = getattr(NODE_CLASS_MAPPINGS[class_type], "VALIDATE_INPUTS", None)
    return set(inspect.signature(check).parameters) if check is not None else set()


def wrong_inputs(node: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(input, wrong value, type of the server's error) of all inputs of a node."""
    together = own_check(node["name"])
    for section in ("required", "optional"):
        for name, (kind, *rest) in node["input"].get(section, {}).items():
            options = rest[0] if rest else {}
            other = OTHER_TYPE.get(kind, "EmptyImage") if isinstance(kind, str) else "EmptyImage"
            yield name, [other, 0], "return_type_mismatch"
            if section == "required":
                yield name, MISSING, "required_input_missing"
            if isinstance(kind, list):
                refused = "custom_validation_failed" if name in together else "value_not_in_list"
                yield name, "no such choice", refused
            if kind in NUMBERS:
                yield name, "much", "invalid_input_type"
                yield name, options["min"] - 1, "value_smaller_than_min"
                yield name, options["max"] + 1, "value_bigger_than_max"


def feeding(info: dict[str, Any], class_type: str) -> dict[str, Any]:
    """A node of this class with what it needs, and no output: it is there to be linked from."""
    return {name: node for name, node in graph_of(info, class_type).items() if name != OUTPUT}


def refusal(server, prompt: dict[str, Any]) -> dict[str, list[tuple[str, str]]] | str:
    """(type, input) of each error that the server names, by node."""
    try:
        queued = server.post("/prompt", {"prompt": prompt})
    except ServerError as error:
        return {
            node: [(each["type"], each["extra_info"].get("input_name")) for each in entry["errors"]]
            for node, entry in error.answer["node_errors"].items()
        }
    server.post("/queue", {"delete": [queued["prompt_id"]]})
    return "accepted"
