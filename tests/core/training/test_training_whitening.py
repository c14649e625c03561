"""The whitened error of embeddings, and the diffusion prior that learns from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.training.stages import build_recipe
from unclip.core.training.whitening import WhitenedError

from ...helpers.stages import changed, stage_settings, write_tiny_clip
from ...helpers.training import write_tiny_shards

SPACE = EmbeddingSpace("test", 3)
VARIANCES = torch.tensor([9.0, 1.0, 0.01])


def rotation() -> torch.Tensor:
    basis, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    return basis


def embeddings() -> torch.Tensor:
    """[20000, 3] of zero mean, with VARIANCES along the columns of the rotation."""
    noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    return (noise * VARIANCES.sqrt()) @ rotation().T


def test_errors_along_all_components_count_by_their_variance() -> None:
    error = WhitenedError(Embedding(embeddings(), SPACE), ridge=0.01)
    found = error(rotation().T.contiguous(), torch.zeros(3, 3))  # row k: an error of 1 along component k
    torch.testing.assert_close(found, 1 / (VARIANCES + 0.01) / 3, rtol=0.05, atol=0)


def test_always_the_mean_has_an_error_of_one() -> None:
    vectors = embeddings() + 2
    error = WhitenedError(Embedding(vectors, SPACE), ridge=1e-6)
    assert error(vectors.mean(dim=0).expand_as(vectors), vectors).mean().item() == pytest.approx(1, abs=0.01)
    assert error(vectors, vectors).abs().max() == 0


def test_half_precision_outputs_are_measured_in_full() -> None:
    error = WhitenedError(Embedding(embeddings(), SPACE), ridge=0.01)
    target = embeddings()[:50]
    output = (target + 0.5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = error(output, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, error(output.float(), target), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_a_ridge_that_is_not_positive_is_named(ridge: float) -> None:
    with pytest.raises(ValueError, match=rf"whitening is {ridge}, expected a positive variance"):
        WhitenedError(Embedding(embeddings(), SPACE), ridge)


def test_the_prior_learns_from_the_error_that_its_config_names(tmp_path: Path) -> None:
    settings = stage_settings(write_tiny_shards(tmp_path / "shards"), write_tiny_clip(tmp_path))["prior"]
    losses = {}
    for whitening in (None, 0.01, 1e6):
        config = settings if whitening is None else changed(settings, "whitening", whitening)
        _, recipe = build_recipe("prior", config, "test.toml")
        losses[whitening] = recipe.loss(MeanPredictor(), recipe.batch(3), torch.Generator().manual_seed(5))
    pictures = recipe.data.sample(12)[0]
    assert len(pictures) == 12  # one batch
    # A ridge far above all variances leaves the plain squared error, in its own unit.
    torch.testing.assert_close(losses[1e6] * 1e6, losses[None], rtol=1e-3, atol=0)
    assert not torch.isclose(losses[0.01], losses[None], rtol=0.1)


class MeanPredictor(torch.nn.Module):
    def forward(self, x: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)
