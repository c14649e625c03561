"""PCA, buckets and codes of embeddings, against numpy and closed forms."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from unclip.core.embeddings.codec import EmbeddingCodec, fit_codec
from unclip.core.embeddings.pca import fit_pca
from unclip.core.embeddings.quantise import Quantiser, fit_quantiser
from unclip.core.embeddings.space import Embedding, EmbeddingSpace

SPACE = EmbeddingSpace("test/pca", 6)
SCALES = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1])


def embeddings(count: int = 500, seed: int = 0) -> Embedding:
    """Gaussian, with standard deviations SCALES along random orthogonal axes, around a mean."""
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9)))
    noise = torch.randn(count, 6, generator=generator)
    return Embedding((noise * SCALES) @ axes.T + torch.arange(6.0), SPACE)


# --- PCA ---


def test_components_are_those_of_numpy() -> None:
    found = fit_pca(embeddings(), components=6)
    vectors = embeddings().vectors.double().numpy()
    centred = vectors - vectors.mean(axis=0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    rows *= np.sign(rows[np.arange(6), np.abs(rows).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(found.components.numpy(), rows, atol=1e-5)
    np.testing.assert_allclose(found.variances.numpy(), singular**2 / 500, rtol=1e-5)
    np.testing.assert_allclose(found.total_variance.item(), centred.var(axis=0).sum(), rtol=1e-6)
    np.testing.assert_allclose(found.mean.numpy(), vectors.mean(axis=0), rtol=1e-6)
    assert (found.variances.diff() < 0).all()
    shuffled = embeddings().vectors[torch.randperm(500, generator=torch.Generator().manual_seed(3))]
    again = fit_pca(Embedding(shuffled, SPACE), components=6)
    torch.testing.assert_close(again.components, found.components, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_as_many_components_are_kept_as_the_share_needs(share: float) -> None:
    found = fit_pca(embeddings(), explained_variance=share)
    every = fit_pca(embeddings(), components=6).explained_variance.cumsum(0)
    k = len(found)
    assert every[k - 1] >= share - 1e-6 and (k == 1 or every[k - 2] < share)
    torch.testing.assert_close(every[-1], torch.tensor(1.0))


def test_the_default_leaves_one_percent_of_the_variance() -> None:
    found, given = fit_pca(embeddings()), embeddings()
    rebuilt = found.reconstruct(found.project(given)).vectors
    error = (rebuilt - given.vectors).square().sum() / (given.vectors - found.mean).square().sum()
    assert 1 - found.explained_variance.sum() == pytest.approx(error.item(), rel=1e-3)
    assert 0.001 < error <= 0.01


def test_projection_and_reconstruction_are_inverse_up_to_what_is_left_out() -> None:
    pca, given = fit_pca(embeddings(), components=6), embeddings(4, seed=1)
    coefficients = pca.project(given)
    torch.testing.assert_close(pca.reconstruct(coefficients).vectors, given.vectors, atol=1e-5, rtol=0)
    partial = pca.reconstruct(coefficients, k=2)
    torch.testing.assert_close(partial.vectors, pca.reconstruct(coefficients[:, :2]).vectors)
    torch.testing.assert_close(pca.project(partial)[:, :2], coefficients[:, :2], atol=1e-5, rtol=0)
    assert pca.project(partial)[:, 2:].abs().max() < 1e-5
    torch.testing.assert_close(pca.reconstruct(coefficients, k=0).vectors, pca.mean.expand(4, 6))
    assert partial.space is SPACE and pca.to("cpu").space is SPACE


def test_pca_errors_name_what_is_wrong() -> None:
    given = embeddings(10)
    pca = fit_pca(given, components=3)
    elsewhere = replace(given, space=EmbeddingSpace("other", 6))
    for call, message in (
        (lambda: fit_pca(embeddings(1)), "embedding: found 1, expected at least 2"),
        (lambda: fit_pca(given, explained_variance=1.5), "explained_variance: found 1.5"),
        (lambda: fit_pca(given, components=7), "components: found 7, expected 1 to 6"),
        (lambda: fit_pca(embeddings(3), components=3), "components: found 3, expected 1 to 2"),
        (lambda: fit_pca(Embedding(torch.ones(3, 6), SPACE)), "found 3 equal embeddings"),
        (lambda: fit_pca(Embedding(torch.full((3, 6), torch.nan), SPACE)), "holds NaN or infinite"),
        (lambda: pca.project(elsewhere), "embedding is in the CLIP space 'other'"),
        (lambda: pca.reconstruct(torch.zeros(2, 4)), "coefficients: found shape (2, 4), expected [batch, up"),
        (lambda: pca.reconstruct(torch.zeros(2, 3), k=4), "k: found 4, expected 0 to 3 coefficients"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


# --- buckets ---


def values(count: int = 5000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    scales, means = torch.tensor([1.0, 0.1, 5.0]), torch.tensor([0.0, 3.0, -2.0])
    return torch.randn(count, 3, generator=generator) * scales + means


def test_uniform_buckets_are_within_half_a_width() -> None:
    given = values()
    quantiser = fit_quantiser(given, 16)
    codes = quantiser.encode(given)
    assert codes.dtype == torch.int64 and codes.min() == 0 and codes.max() == 15
    widths = quantiser.edges[:, 1] - quantiser.edges[:, 0]
    torch.testing.assert_close(quantiser.edges.diff(dim=1), widths[:, None].expand(3, 14), rtol=1e-3, atol=0)
    error = (quantiser.decode(codes) - given).abs()
    inner = (codes > 0) & (codes < 15)
    assert (error <= widths)[inner].all()
    # The mean squared error of a fine uniform quantiser is width² / 12; the open outer buckets add some.
    expected = widths.square() / 12
    found = (quantiser.decode(codes) - given)[:, 0].square().mean()
    assert 0.8 * expected[0] < found < 1.5 * expected[0]
    assert torch.equal(quantiser.encode(quantiser.decode(codes)), codes)


def test_more_buckets_are_more_exact_and_uniform_ones_more_than_quantiles() -> None:
    def error(buckets: int, spacing: str) -> float:
        quantiser = fit_quantiser(values(), buckets, spacing)
        return (quantiser.decode(quantiser.encode(values())) - values()).square().mean().item()

    assert error(64, "uniform") < 0.1 * error(16, "uniform")
    assert error(32, "uniform") < 0.8 * error(32, "quantile")


def test_quantile_buckets_hold_equally_many() -> None:
    quantiser = fit_quantiser(values(4000), 8, "quantile")
    counts = torch.stack([torch.bincount(column, minlength=8) for column in quantiser.encode(values(4000)).T])
    assert (counts - 500).abs().max() <= 1


def test_centres_are_means_and_empty_buckets_have_their_middle() -> None:
    given = torch.tensor([[0.0], [0.1], [0.2], [4.0]])
    quantiser = fit_quantiser(given, 4)
    assert quantiser.encode(given)[:, 0].tolist() == [0, 0, 0, 3]
    torch.testing.assert_close(quantiser.centres[0, [0, 3]], torch.tensor([0.1, 4.0]))
    torch.testing.assert_close(quantiser.centres[0, 1:3], torch.tensor([1.5, 2.5]), atol=0.01, rtol=0)
    assert quantiser.decode(torch.tensor([[1]])).shape == (1, 1)
    flat = fit_quantiser(torch.full((5, 1), 2.0), 4)
    assert flat.decode(flat.encode(torch.tensor([[2.0]]))).item() == 2


def test_an_edge_belongs_below() -> None:
    quantiser = Quantiser(torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0, 0.5, 2.0]]))
    found = quantiser.encode(torch.tensor([[-9.0], [0.0], [0.1], [1.0], [1.1]]))
    assert found[:, 0].tolist() == [0, 0, 1, 1, 2]


def test_quantiser_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="buckets: found 1, expected at least 2"):
        fit_quantiser(values(), 1)
    with pytest.raises(ValueError, match=r"values: found \(0, 3\)"):
        fit_quantiser(values()[:0], 4)
    with pytest.raises(ValueError, match=r"expected edges \(3, 3\), found \(3, 4\)"):
        Quantiser(torch.zeros(3, 4), torch.zeros(3, 4))


# --- both ---


def test_codes_of_embeddings() -> None:
    given, text = embeddings(), torch.randn(500, 6, generator=torch.Generator().manual_seed(4))
    codec = fit_codec(given, text, components=4, buckets=64, match_buckets=8)
    codes = codec.encode(given)
    assert codes.shape == (500, 4)
    rebuilt = codec.decode(codes).vectors
    spread = (given.vectors - codec.pca.mean).square().sum()
    left_out = 1 - codec.pca.explained_variance.sum()
    assert left_out < (rebuilt - given.vectors).square().sum() / spread < left_out + 0.002
    partial = codec.decode(codes[:, :2]).vectors
    torch.testing.assert_close(partial, codec.pca.reconstruct(codec.codes.decode(codes), k=2).vectors)
    match = codec.encode_match((given.vectors * text).sum(dim=1))
    assert (torch.bincount(match, minlength=8) - 62.5).abs().max() < 2
    counts = torch.bincount(codec.encode_text(text)[:, 0], minlength=64)  # its own buckets: none overflows
    assert max(counts[0], counts[-1]) < 10

    again = EmbeddingCodec.from_state(codec.state(), SPACE)
    assert torch.equal(again.encode(given), codes)
    assert torch.equal(again.decode(codes).vectors, rebuilt)
    assert again.state().keys() == codec.state().keys()
