"""unCLIP Augment: weaker, stronger and noisier embeddings on the wire."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.augment import augment

from ..helpers.nodes import run


@pytest.fixture
def embedding(bundle):
    space = bundle.decoder.space
    vectors = torch.randn(2, space.dim, generator=torch.Generator().manual_seed(0))
    return Embedding(space.in_convention(vectors), space)


def test_its_inputs_reach_the_core(embedding):
    (found,) = run("UnCLIPAugment", embedding=embedding, strength=0.8, noise_level=0.4, seed=3, repeat=2)
    assert torch.equal(found.vectors, augment(embedding, 0.8, 0.4, seed=3, repeat=2).vectors)
    assert len(found) == 4 and found.space == embedding.space


def test_left_alone_it_changes_nothing(embedding):
    (found,) = run("UnCLIPAugment", embedding=embedding, seed=3)
    assert torch.equal(found.vectors, embedding.vectors)
