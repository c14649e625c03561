"""Captions with pictures among their words: nodes that read captions as words alone say that they cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.stages import Bundle
from unclip.nodes import NODE_CLASS_MAPPINGS, sockets

from ..helpers.nodes import run

REFUSED = "pictures stand for words of this caption, and only λ-ECLIPSE's prior reads those"
# Without ComfyUI there is no MODEL; the others need networks that read captions: test_pops, test_glide.
ELSEWHERE = {"UnCLIPDecoderAsModel", "UnCLIPOperator", "UnCLIPUpsample"}


def _inputs(cls: Any) -> dict[str, str]:
    """The inputs of a node that have no default, and their sockets."""
    return {
        name: kind
        for section in cls.INPUT_TYPES().values()
        for name, (kind, options) in section.items()
        if isinstance(kind, str) and "default" not in options
    }


READERS = [
    (node, name)
    for node, cls in NODE_CLASS_MAPPINGS.items()
    if node not in ELSEWHERE
    for name, kind in _inputs(cls).items()
    if kind == sockets.TEXT and name != "upsampler_text"
]


@pytest.fixture(scope="module")
def given(bundle: Bundle) -> Callable[[str, str], dict[str, Any]]:
    """What a node is given where pictures stand among the words of the caption at one of its inputs."""
    assert bundle.clip is not None
    plain = encode_text(bundle.clip, ["a red fox"])
    values = {
        sockets.CLIP: bundle.clip,
        sockets.TEXT: plain,
        sockets.PRIOR: bundle.prior,
        sockets.DECODER: bundle.decoder,
        sockets.UPSAMPLER: bundle.upsamplers[0],
        sockets.EMBEDDING: encode_images(bundle.clip, torch.rand(1, 3, 64, 64)),
        sockets.IMAGE: torch.rand(1, 64, 64, 3),
        sockets.MASK: torch.ones(1, 64, 64),
    }

    def inputs(node: str, name: str) -> dict[str, Any]:
        found = {
            each: values[kind] for each, kind in _inputs(NODE_CLASS_MAPPINGS[node]).items() if kind in values
        }
        if node == "UnCLIPAutoregressivePrior":
            found["prior"] = bundle.ar_prior
        if node == "UnCLIPTextDiff":  # embeddings would take the captions' place
            found = {each: value for each, value in found.items() if "_embedding" not in each}
            found["baseline_text"] = encode_text(bundle.clip, ["a photo"])
        return found | {name: replace(plain, control=plain.pooled)}

    return inputs


@pytest.mark.parametrize(("node", "name"), READERS)
def test_pictures_among_the_words_are_refused_where_they_have_no_place(given, node, name) -> None:
    values = given(node, name)
    if node == "UnCLIPRegion":  # holds the caption for the decoder
        (regions,) = run(node, **values)
        node, values = "UnCLIPDecode", {**given("UnCLIPDecode", "text"), "regions": regions}
        values["text"] = replace(values["text"], control=None)
    with pytest.raises(ValueError, match=REFUSED):
        run(node, **values)


def test_the_same_captions_without_pictures_are_read(given, bundle) -> None:
    for node, name in READERS:
        values = given(node, name)
        run(node, **{**values, name: encode_text(bundle.clip, ["a blue car"])})
