"""Several results of each row of a batch."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.noise import StartingNoise
from unclip.core.pipelines.repeats import repeat_conditions, repeat_each, results_to_make

SPACE = EmbeddingSpace("unclip/test", 4)


def embedding(rows: int) -> Embedding:
    return Embedding(torch.arange(rows * 4.0).reshape(rows, 4), SPACE)


def noise(rows: int) -> StartingNoise:
    return StartingNoise(torch.arange(rows).float().reshape(rows, 1, 1, 1))


@pytest.mark.parametrize(
    ("repeat", "batch_size", "sizes", "results"),
    [
        (1, 1, {"embedding": 3}, 3),
        (2, 1, {"embedding": 3}, 6),
        (2, 3, {"embedding": 3}, 6),
        (2, 3, {"embedding": 1}, 6),
        (4, 1, {}, 4),
    ],
)
def test_every_row_gives_as_many_results(repeat, batch_size, sizes, results) -> None:
    assert results_to_make(repeat, batch_size, **sizes) == results


@pytest.mark.parametrize(
    ("rows", "results", "places"),
    [(1, 6, [0]), (3, 6, [0, 0, 1, 1, 2, 2]), (6, 6, [0, 1, 2, 3, 4, 5])],
)
def test_noise_may_have_a_row_for_each_row_or_for_each_result(rows, results, places) -> None:
    assert results_to_make(2, 1, noise(rows), embedding=3) == results
    assert repeat_each(noise(rows), results).values.flatten().tolist() == places


def test_noise_alone_decides_how_many_there_are() -> None:
    assert results_to_make(1, 1, noise(4), embedding=1) == 4
    assert results_to_make(4, 1, noise(4), embedding=1) == 4
    assert results_to_make(2, 1, noise(4), embedding=1) == 8


def test_copies_of_a_row_are_neighbours_in_all_that_there_is() -> None:
    text = TextFeatures(
        torch.arange(3.0).reshape(3, 1, 1), torch.ones(3, 1, dtype=torch.bool), embedding(3).vectors, SPACE
    )
    given = Conditions(embedding(3), text, negative_embedding=embedding(1))
    repeated = repeat_conditions(given, 6)
    assert torch.equal(repeated.embedding.vectors, embedding(3).vectors[[0, 0, 1, 1, 2, 2]])
    assert repeated.text.tokens.flatten().tolist() == [0, 0, 1, 1, 2, 2] and len(repeated.text.mask) == 6
    assert len(repeated.negative_embedding) == 1 and repeated.negative_text is None
    assert torch.equal(repeat_each(torch.arange(2), 4), torch.tensor([0, 0, 1, 1]))


def test_the_message_says_how_each_row_is_had_several_times() -> None:
    with pytest.raises(
        ValueError, match=r"embedding 3, batch_size 2\. .* leave batch_size at 1 and set repeat to 2$"
    ):
        results_to_make(1, 2, embedding=3)
    with pytest.raises(ValueError, match=r"^batch sizes do not match: embedding 3, text 2") as told:
        results_to_make(1, 1, embedding=3, text=2)
    assert "repeat" not in str(told.value)
    with pytest.raises(ValueError, match=r"^repeat is 0"):
        results_to_make(0, 1)
