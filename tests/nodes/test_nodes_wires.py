"""Wires of another kind than a node expects: nodes that let everything pass (a switch) can bring them."""

from __future__ import annotations

import math

import pytest
import torch
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.nodes import NODE_CLASS_MAPPINGS

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
