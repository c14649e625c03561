"""Pictures with alpha: where it is dropped the tooltip says so, and everywhere else it counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.noise import StartingNoise
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..helpers.bundle import DECODED_SIZE, DIM, tiny_bundle
from ..helpers.nodes import run

WORDS = "Transparency is dropped; the colours under it count."
DROPPED = {
    ("UnCLIPImageEncode", "image"),
    ("UnCLIPDecode", "image"),
    ("UnCLIPUpsample", "image"),
    ("UnCLIPUpsample", "known_image"),
    ("UnCLIPInvert", "image"),
    ("UnCLIPInpaint", "image"),
    ("UnCLIPZeroShot", "image"),
    ("UnCLIPScore", "image"),
}
KEPT = {"UnCLIPComposite", "UnCLIPSticker", "UnCLIPGrid", "UnCLIPInpaintWhole"}
WITHOUT_COLOURS = {("UnCLIPRegionMask", "image")}


def test_every_picture_is_one_or_the_other():
    taken = {
        (node_id, name): declared[1]["tooltip"]
        for node_id, cls in NODE_CLASS_MAPPINGS.items()
        for section in cls.INPUT_TYPES().values()
        for name, declared in section.items()
        if declared[0] == "IMAGE" and name != "hint"
    }
    assert {each for each, tooltip in taken.items() if tooltip.endswith(WORDS)} == DROPPED
    assert {node_id for node_id, _ in taken.keys() - DROPPED - WITHOUT_COLOURS} == KEPT


@pytest.fixture(scope="module")
def tiny():
    return tiny_bundle()


def numbers(found: tuple) -> list[Tensor]:
    """What a node gives, as far as it is numbers."""
    names = {Embedding: "vectors", StartingNoise: "values"}
    parts = (getattr(each, names[type(each)]) if type(each) in names else each for each in found)
    return [torch.as_tensor(each) for each in parts if not isinstance(each, str)]


@pytest.mark.parametrize("node_id", sorted({node_id for node_id, _ in DROPPED}))
def test_what_is_dropped_changes_nothing(tiny, node_id):
    draw = torch.Generator().manual_seed(4)
    image = torch.rand(1, DECODED_SIZE, DECODED_SIZE, 4, generator=draw)
    embedding = Embedding(torch.randn(1, DIM, generator=draw), tiny.clip.space)
    given = {
        "UnCLIPImageEncode": {"clip": tiny.clip},
        "UnCLIPDecode": {"decoder": tiny.decoder, "embedding": embedding, "steps": 2, "strength": 0.5},
        "UnCLIPUpsample": {"upsampler": tiny.upsamplers[0], "steps": 2},
        "UnCLIPInvert": {"decoder": tiny.decoder, "embedding": embedding, "steps": 2},
        "UnCLIPInpaint": {
            "decoder": tiny.decoder,
            "embedding": embedding,
            "steps": 2,
            "mask": torch.eye(8)[None],
        },
        "UnCLIPZeroShot": {"clip": tiny.clip, "captions": "a\nb"},
        "UnCLIPScore": {"clip": tiny.clip, "text": encode_text(tiny.clip, ["a"])},
    }[node_id]
    found, plain = (numbers(run(node_id, image=each, **given)) for each in (image, image[..., :3]))
    darker = numbers(run(node_id, image=image[..., :3] * 0.5, **given))
    for each, same, other in zip(found, plain, darker, strict=True):
        assert torch.equal(each, same)
        assert each.shape == other.shape
    assert any(not torch.equal(each, other) for each, other in zip(found, darker, strict=True))
