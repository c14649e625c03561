"""Wires with something else than a node expects: ComfyUI looks at their types alone, and nodes that let
everything pass (a switch) have none."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.nodes import NODE_CLASS_MAPPINGS
from unclip.nodes.messages import with_plain_errors

from ..helpers.nodes import run

EMBEDDING = Embedding(torch.ones(1, 4), EmbeddingSpace("unclip/test", 4))
WIRES = [
    (node_id, name, kind)
    for node_id, node in NODE_CLASS_MAPPINGS.items()
    for section in node.INPUT_TYPES().values()
    for name, (kind, *_) in section.items()
    if isinstance(kind, str) and kind.startswith("UNCLIP_")
]


@pytest.mark.parametrize(("node_id", "name", "kind"), WIRES)
@pytest.mark.parametrize("value", [{"samples": torch.zeros(1, 4, 8, 8)}, torch.zeros(1, 8, 8, 3), "a", [1]])
def test_another_kind_is_refused_by_the_inputs_name(node_id, name, kind, value):
    wanted = kind.replace(",", " or ")
    with pytest.raises(ValueError, match=f"^{name}: found .*, expected {wanted}. Something else is wired"):
        run(node_id, **{name: value})


def test_what_arrived_is_told_by_its_kind():
    with pytest.raises(ValueError, match=r"^text: found UNCLIP_EMBEDDING, expected UNCLIP_TEXT"):
        run("UnCLIPDiffusionPrior", text=EMBEDDING)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["x", "width"])
def test_a_number_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}: found (inf|nan), expected a number"):
        run("UnCLIPSticker", image=torch.zeros(1, 8, 8, 3), words="a", **{name: value})


def signature_of(check) -> set[str]:
    """Names of the inputs that a node checks itself."""
    return set() if check is None else set(inspect.signature(check).parameters)


NODES = NODE_CLASS_MAPPINGS.items()
WIDGETS = [
    (node_id, name, kind, options)
    for node_id, node in NODES
    for section in node.INPUT_TYPES().values()
    for name, (kind, options) in section.items()
    if kind in ("INT", "FLOAT", "BOOLEAN", "STRING")
    or (isinstance(kind, list) and name not in signature_of(getattr(node, "VALIDATE_INPUTS", None)))
]
NUMBERS = [each for each in WIDGETS if each[2] in ("INT", "FLOAT")]
IDS = [f"{node_id}.{name}" for node_id, name, *_ in NUMBERS]


def refused(node_id: str, name: str, value: object) -> str:
    with pytest.raises(ValueError, match=f"^{name}: found .*, expected ") as told:
        NODE_CLASS_MAPPINGS[node_id]().execute(**{name: value})
    return str(told.value)


@pytest.mark.parametrize(("node_id", "name", "kind", "options"), NUMBERS, ids=IDS)
def test_every_range_that_is_declared_holds_for_wires(node_id, name, kind, options):
    low, high = options["min"], options["max"]
    word = "a whole number" if kind == "INT" else "a number"
    if high != 2**64 - 1:  # seeds go round
        for value in (low - 1, high + 1):
            assert f"found {value}, expected {word} from {low} to {high}; look at" in refused(
                node_id, name, value
            )
    for value in ("some", [1], {"samples": 1}, *([1.5] if kind == "INT" else [])):
        assert f"expected {word} from" in refused(node_id, name, value)


@pytest.mark.parametrize(
    ("node_id", "name", "kind", "options"), WIDGETS, ids=[f"{each[0]}.{each[1]}" for each in WIDGETS]
)
def test_what_is_no_choice_no_switch_and_no_text_is_refused(node_id, name, kind, options):
    wrong = {"BOOLEAN": ["no", 2, [1]], "STRING": [[1], torch.zeros(1)], "INT": [[]], "FLOAT": [[]]}
    for value in ["no such choice", 1, ["x"]] if isinstance(kind, list) else wrong[kind]:
        refused(node_id, name, value)


def arrived(**given):
    """What the function of a node is called with."""

    class Node:
        FUNCTION = "execute"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802
            number = {"min": 1, "max": 9}
            return {
                "required": {"count": ("INT", number), "share": ("FLOAT", number), "words": ("STRING", {})},
                "optional": {"flag": ("BOOLEAN", {}), "seed": ("INT", {"min": 0, "max": 2**64 - 1})},
            }

        def execute(self, **given):
            return given

    return with_plain_errors(Node)().execute(**given)


def test_a_number_that_rounding_moved_past_an_end_is_that_end():
    assert arrived(share=9 + 1e-9) == {"share": 9.0}
    assert arrived(share=1 - 1e-9) == {"share": 1.0}
    with pytest.raises(ValueError, match=r"share: found 9\.001, expected a number from 1 to 9"):
        arrived(share=9.001)


def test_numbers_of_other_types_become_pythons_own():
    found = arrived(count=3.0, share=2, words=0.5, flag=1, seed=torch.tensor(2**40))
    assert found == {"count": 3, "share": 2.0, "words": "0.5", "flag": True, "seed": 2**40}
    assert [type(each) for each in found.values()] == [int, float, str, bool, int]
    assert arrived(count="4", seed=-1, share=torch.tensor(1.5)) == {"count": 4, "seed": -1, "share": 1.5}


def test_nothing_at_an_optional_input_is_as_if_it_was_not_connected():
    assert arrived(count=1, flag=None, seed=None) == {"count": 1}
    with pytest.raises(ValueError, match=r"^count: found nothing, expected a whole number from 1 to 9; look"):
        arrived(count=None)


@pytest.mark.parametrize(
    ("node_id", "name"),
    [("UnCLIPDiffusionPrior", "text"), ("UnCLIPToClipVision", "embedding"), ("UnCLIPPCAReconstruct", "pca")],
)
def test_an_empty_output_is_refused_where_something_is_needed(node_id, name):
    with pytest.raises(ValueError, match=f"^{name}: found nothing, expected UNCLIP_.*is empty: its tooltip"):
        run(node_id, **{name: None})


def test_an_empty_embedding_among_others_is_left_out():
    (blended,) = run("UnCLIPBlend", embedding_1=None, embedding_2=EMBEDDING)
    assert torch.allclose(blended.vectors, EMBEDDING.vectors)


def test_a_sheet_of_nothing_says_so():
    with pytest.raises(ValueError, match=r"^image_1: found nothing, expected pictures"):
        run("UnCLIPGrid", image_1=None)
