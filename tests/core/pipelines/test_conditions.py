"""What a decoder is told, as one thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.conditioning import decoder_conditions
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.decode import decode
from unclip.core.pipelines.memory import decode_memory

from ...helpers.bundle import DIM, randomised, tiny_bundle
from ...helpers.prior import captions
from ...helpers.unet_small import tiny_unet


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


def test_captions_are_read_in_the_norm_of_the_decoder(decoder):
    reading = ConditioningConfig(clip_dim=DIM, clip_tokens=2, text_pooled_dim=DIM, context_dim=32)
    config = tiny_unet(attention=(8,), conditioning=reading)
    network = randomised(UNet(config), torch.Generator().manual_seed(0))
    unit = replace(decoder.space, norm="unit")
    reader = replace(decoder, network=network, space=unit)
    text = replace(captions(3), pooled=rows(decoder, 1).vectors, space=decoder.space)
    told = [
        decoder_conditions(reader, Conditions(rows(decoder, 1), each, negative_text=each), 1, True)
        for each in (text, replace(text, pooled=F.normalize(text.pooled, dim=-1), space=unit))
    ]
    for raw, normalised in zip(*told, strict=True):
        torch.testing.assert_close(raw.embedding, normalised.embedding)
    other = replace(text, pooled=text.pooled.roll(1, 1))
    changed, _ = decoder_conditions(reader, Conditions(rows(decoder, 1), other), 1, False)
    assert not torch.allclose(changed.embedding, told[0][0].embedding)
