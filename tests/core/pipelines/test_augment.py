"""Embeddings made weaker, stronger and noisier."""

from __future__ import annotations

import math

import pytest
import torch
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.pipelines.augment import augment

DIM = 64


def space(norm: str = "raw", statistics: bool = True) -> EmbeddingSpace:
    generator = torch.Generator().manual_seed(0)
    mean = tuple(torch.randn(DIM, generator=generator).tolist()) if statistics else None
    std = tuple((0.5 + torch.rand(DIM, generator=generator)).tolist()) if statistics else None
    return EmbeddingSpace("test", DIM, norm, mean, std)


def embeddings(where: EmbeddingSpace, rows: int = 3) -> Embedding:
    noise = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1))
    return Embedding(where.in_convention(where.unstandardise(noise)), where)


def test_nothing_asked_is_nothing_changed() -> None:
    given = embeddings(space())
    assert torch.equal(augment(given).vectors, given.vectors)
    assert torch.equal(augment(given, repeat=2).vectors[::2], given.vectors)


def test_strength_goes_from_the_mean_through_the_embedding() -> None:
    where = space()
    given = embeddings(where)
    mean = torch.tensor(where.mean).expand(3, -1)
    torch.testing.assert_close(augment(given, 0.0).vectors, mean)
    torch.testing.assert_close(augment(given, 0.5).vectors, (mean + given.vectors) / 2)
    torch.testing.assert_close(augment(given, 2.0).vectors, 2 * given.vectors - mean)


@pytest.mark.parametrize("norm", ["raw", "unit"])
@pytest.mark.parametrize("statistics", [True, False])
def test_noise_keeps_the_variance_and_follows_its_formula(norm, statistics) -> None:
    where = space(norm, statistics)
    given = embeddings(where, rows=200)
    found = augment(given, noise_level=0.5, seed=5)
    u = where.standardise(given.vectors)
    size = u.square().mean(dim=-1, keepdim=True).sqrt() if norm == "raw" and not statistics else 1.0
    noise = draw_noise(image_generators(5, 200), (DIM,)) * size
    expected = where.in_convention(where.unstandardise(math.sqrt(0.5) * (u + noise)))
    torch.testing.assert_close(found.vectors, expected)
    if norm == "raw":
        spread = where.standardise(found.vectors).std() / u.std()
        assert 0.95 < spread < 1.05
    else:
        torch.testing.assert_close(found.vectors.norm(dim=-1), torch.ones(200))


def test_copy_k_of_row_r_is_that_of_its_own_seed() -> None:
    given = embeddings(space())
    found = augment(given, noise_level=0.3, seed=10, repeat=4).vectors
    for row in range(3):
        for copy in range(4):
            alone = Embedding(given.vectors[row : row + 1], given.space)
            seed = 10 + row * 4 + copy
            assert torch.equal(augment(alone, noise_level=0.3, seed=seed).vectors[0], found[row * 4 + copy])
    assert not torch.equal(found[0], found[1])


def test_more_noise_goes_further_from_the_embedding() -> None:
    given = embeddings(space())
    away = [
        (augment(given, noise_level=level).vectors - given.vectors).norm() for level in (0.1, 0.3, 0.6, 1)
    ]
    assert away == sorted(away)
    torch.testing.assert_close(augment(given, 0.0, 1.0).vectors, augment(given, 2.0, 1.0).vectors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": math.nan}, "strength is nan"),
        ({"noise_level": 1.5}, "noise_level is 1.5"),
        ({"repeat": 0}, "repeat"),
    ],
)
def test_values_out_of_range_are_named(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        augment(embeddings(space()), **values)


def test_directions_without_a_mean_have_no_strength() -> None:
    given = embeddings(space("unit", statistics=False))
    with pytest.raises(ValueError, match="leave it at 1"):
        augment(given, 0.5)
    assert len(augment(given, noise_level=0.5)) == 3
