"""What a decoder is told, as one thing."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.decode import decode
from unclip.core.pipelines.memory import decode_memory

from ...helpers.bundle import DIM, tiny_bundle
from ...helpers.prior import captions


@pytest.fixture(scope="module")
def decoder():
    return tiny_bundle(upsamplers=0).decoder


def rows(decoder, count: int) -> Embedding:
    return Embedding(torch.randn(count, DIM, generator=torch.Generator().manual_seed(count)), decoder.space)


def test_what_is_there_is_counted(decoder):
    assert Conditions().sizes() == {} and len(Conditions()) == 1
    given = Conditions(rows(decoder, 1), captions(3, 4), negative_embedding=rows(decoder, 3))
    assert given.sizes() == {"embedding": 1, "text": 2, "negative_embedding": 3}
    assert len(given) == 3
    assert len(Conditions(rows(decoder, 2), negative_text=captions(3))) == 2


def test_memory_counts_negatives(decoder):
    negative = Conditions(rows(decoder, 1), negative_embedding=rows(decoder, 4))
    assert decode_memory(decoder, 2.0, negative) == decode_memory(decoder, 2.0, 4)
    assert decode_memory(decoder, 2.0, Conditions(rows(decoder, 1))) == decode_memory(decoder, 2.0, 1)


def test_sizes_that_do_not_match_are_named(decoder):
    with pytest.raises(ValueError, match="embedding 2, negative_embedding 3"):
        decode(decoder, rows(decoder, 2), seed=0, negative_embedding=rows(decoder, 3))
