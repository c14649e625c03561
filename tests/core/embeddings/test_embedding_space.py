"""Norm conventions of a CLIP space: embeddings that two parts of it state in different lengths."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures

MEAN, STD = (0.0, 1.0, 2.0, 0.0), (1.0, 1.0, 1.0, 3.0)
BARE = EmbeddingSpace("test", 4)
KNOWN = EmbeddingSpace("test", 4, mean=MEAN, std=STD)
UNIT = EmbeddingSpace("test", 4, norm="unit")


def test_the_typical_norm_is_that_of_random_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = KNOWN.unstandardise(torch.randn(200_000, 4, generator=generator))
    assert KNOWN.typical_norm == pytest.approx(vectors.square().sum(1).mean().sqrt().item(), rel=0.01)
    assert KNOWN.typical_norm == pytest.approx(17**0.5)
    assert UNIT.typical_norm == 1
    assert BARE.typical_norm is None


def test_vectors_are_brought_to_the_norm_of_the_other_part() -> None:
    raw = torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    unit = Embedding(raw / 5, UNIT)
    assert torch.equal(Embedding(raw, BARE).in_norm_of(KNOWN), raw)
    torch.testing.assert_close(Embedding(raw, BARE).in_norm_of(UNIT), raw / 5)
    torch.testing.assert_close(unit.in_norm_of(KNOWN), raw / 5 * 17**0.5)
    assert torch.equal(unit.in_norm_of(UNIT), unit.vectors)


def test_a_length_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^embedding: it has length 1, but embeddings of 'test' as"):
        Embedding(torch.ones(1, 4), UNIT).in_norm_of(BARE)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spread_that_cannot_be_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="'test': std has values that are not positive and finite"):
        EmbeddingSpace("test", 4, mean=MEAN, std=(1.0, 1.0, value, 1.0))


def test_captions_and_the_empty_one_are_brought_to_the_convention_of_a_space() -> None:
    def features(length: float, null: TextFeatures | None = None) -> TextFeatures:
        tokens, mask = torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
        return TextFeatures(tokens, mask, length * torch.ones(1, 4), BARE, null)

    text = features(3.0, features(5.0))
    unit = text.in_convention_of(UNIT)
    for each in (unit.pooled, unit.null.pooled):
        assert torch.allclose(each, torch.full((1, 4), 0.5))
    same = text.in_convention_of(KNOWN)
    assert torch.equal(same.pooled, text.pooled) and torch.equal(same.null.pooled, text.null.pooled)
