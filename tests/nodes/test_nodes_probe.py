"""Zero-shot probabilities, principal components, and the charts of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from unclip.core.embeddings.space import Embedding
from unclip.core.pictures.chart import LEADING, bar_chart, curve_chart, panel_chart
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.zero_shot import zero_shot

from ..helpers.bundle import DIM, tiny_bundle
from ..helpers.nodes import run

CAPTIONS = ["a red fox", "a blue car", "two love"]


@pytest.fixture(scope="module")
def clip():
    return tiny_bundle(upsamplers=0).clip


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 20, 20, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def embedding(clip) -> Embedding:
    vectors = torch.randn(40, DIM, generator=torch.Generator().manual_seed(1)) * torch.linspace(2, 0.1, DIM)
    return Embedding(vectors, clip.space)


# --- zero-shot ------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_of_scaled_cosines(clip, embedding) -> None:
    text = encode_text(clip, CAPTIONS)
    found = zero_shot(clip, embedding, text)
    cosines = F.normalize(embedding.vectors, dim=-1) @ F.normalize(text.pooled, dim=-1).T
    expected = (clip.network.logit_scale.exp() * cosines).softmax(dim=1)
    assert found.shape == (40, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - cosines.softmax(dim=1)).abs().max() > 0.05
    # A caption's own embedding is taken for that caption.
    own = zero_shot(clip, Embedding(text.pooled, clip.space), text)
    assert own.argmax(dim=1).tolist() == [0, 1, 2]


def test_the_node_takes_pictures_or_embeddings(clip, image) -> None:
    charts, text, best = run("UnCLIPZeroShot", clip=clip, captions="a red fox\n\na blue car\n", image=image)
    assert charts.shape[0] == 2 and charts.shape[-1] == 3 and charts.min() >= 0 and charts.max() <= 1
    blocks = text.split("\n\n")
    assert len(blocks) == 2 and all(len(block.splitlines()) == 2 for block in blocks)
    assert "% " in blocks[0] and blocks[0].splitlines()[1].endswith("  a blue car")
    assert len(best.splitlines()) == 2 and set(best.splitlines()) <= {"a red fox", "a blue car"}
    encoded = encode_images(clip, image.permute(0, 3, 1, 2))
    same = run("UnCLIPZeroShot", clip=clip, captions="a red fox\na blue car", embedding=encoded)
    assert torch.equal(same[0], charts) and same[1:] == (text, best)


def test_what_zero_shot_refuses(clip, image, embedding) -> None:
    with pytest.raises(ValueError, match="captions: found none; write those to choose from"):
        run("UnCLIPZeroShot", clip=clip, captions=" \n", image=image)
    for given in ({}, {"image": image, "embedding": embedding}):
        with pytest.raises(ValueError, match="image, embedding: connect one of them"):
            run("UnCLIPZeroShot", clip=clip, captions="a", **given)
    stranger = replace(clip, space=replace(clip.space, id="somebody/else"))
    with pytest.raises(ValueError, match=r"embedding is in the CLIP space 'unclip/tiny'.*'somebody/else'"):
        run("UnCLIPZeroShot", clip=stranger, captions="a", embedding=embedding)
    with pytest.raises(ValueError, match=r"text is in the CLIP space 'unclip/tiny'.*'somebody/else'"):
        zero_shot(stranger, Embedding(embedding.vectors, stranger.space), encode_text(clip, ["a"]))


# --- principal components -------------------------------------------------------------------------------


def test_no_embedding_has_no_probabilities(clip, embedding) -> None:
    none = replace(embedding, vectors=embedding.vectors[:0])
    with pytest.raises(ValueError, match="embedding is 0; expected at least 1"):
        run("UnCLIPZeroShot", clip=clip, captions="a fox", embedding=none)


def test_embeddings_come_back_from_their_components(embedding) -> None:
    pca, chart = run("UnCLIPPCAFit", embedding=embedding, components=DIM)
    assert chart.shape == (1, 420, 640, 3)
    two = replace(embedding, vectors=embedding.vectors[:2])
    found, labels = run("UnCLIPPCAReconstruct", pca=pca, embedding=two, components=f"0, 4 {DIM}")
    assert labels.splitlines() == ["0", "4", str(DIM)] * 2
    parts = found.vectors.reshape(2, 3, DIM)
    torch.testing.assert_close(parts[:, 0], embedding.vectors.mean(0).expand(2, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(parts[:, 2], two.vectors, atol=1e-4, rtol=0)
    errors = (parts - two.vectors[:, None]).norm(dim=-1)
    assert bool((errors[:, 0] > errors[:, 1]).all() and (errors[:, 1] > errors[:, 2]).all())
    assert found.space == embedding.space


def test_components_take_embeddings_of_both_norms(embedding) -> None:
    pca, _ = run("UnCLIPPCAFit", embedding=embedding, components=4)
    typical = embedding.in_norm_of(replace(embedding.space, norm="unit")) * embedding.space.typical_norm
    raw = Embedding(typical, embedding.space)
    unit = Embedding(F.normalize(typical, dim=-1), replace(embedding.space, norm="unit"))
    expected, found = (
        run("UnCLIPPCAReconstruct", pca=pca, embedding=each, components="0 2")[0] for each in (raw, unit)
    )
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-5, rtol=1e-5)
    assert found.space == expected.space == pca.space


def test_the_share_chooses_the_number_of_components(embedding) -> None:
    few, many = (run("UnCLIPPCAFit", embedding=embedding, explained_variance=v)[0] for v in (0.5, 0.95))
    assert 1 <= len(few) < len(many) < DIM


def test_what_the_pca_nodes_refuse(embedding) -> None:
    (pca, _) = run("UnCLIPPCAFit", embedding=embedding, components=8)
    for text in ("1, 9", "four", "", "2.7, 3", "inf", "nan"):
        with pytest.raises(ValueError, match=r"components: found .*, expected whole numbers from 0 to 8"):
            run("UnCLIPPCAReconstruct", pca=pca, embedding=embedding, components=text)
    with pytest.raises(ValueError, match="embedding: found 1, expected at least 2"):
        run("UnCLIPPCAFit", embedding=replace(embedding, vectors=embedding.vectors[:1]))


def test_an_autoregressive_prior_brings_its_components() -> None:
    bundle = tiny_bundle(upsamplers=0)
    pca, chart = run("UnCLIPPCAFromPrior", prior=bundle.ar_prior)
    codebook = bundle.ar_prior.network.codebook
    assert torch.equal(pca.components, codebook.pca_components) and pca.space == bundle.ar_prior.space
    assert chart.shape == (1, 420, 640, 3)
    with pytest.raises(
        ValueError, match="is not an autoregressive prior: connect the output ar_prior of Load unCLIP"
    ):
        run("UnCLIPPCAFromPrior", prior=bundle.prior)
    with pytest.raises(ValueError, match=r"^prior: nothing arrived"):
        run("UnCLIPPCAFromPrior", prior=None)


def test_shares_are_summed_in_full_precision(embedding) -> None:
    """As they are loaded, a prior's numbers may be in half precision, in which sums go in leaps."""
    (pca, _) = run("UnCLIPPCAFit", embedding=embedding, components=DIM)
    halves = replace(pca, variances=pca.variances.bfloat16(), total_variance=pca.total_variance.bfloat16())
    assert float(halves.explained_variance.cumsum(0)[-1]) == pytest.approx(1, abs=4e-3)
    assert halves.explained_variance.dtype == torch.float32


# --- charts ---------------------------------------------------------------------------------------------


def coloured(picture) -> int:
    """Pixels in the colour of what leads."""
    return {colour: count for count, colour in picture.getcolors(1 << 16)}.get(LEADING, 0)


def test_the_largest_bar_is_as_long_as_its_share() -> None:
    half, quarter = (bar_chart(["a", "b"], [share, 0.1]) for share in (0.5, 0.25))
    assert coloured(half) == pytest.approx(2 * coloured(quarter), rel=0.03)
    assert coloured(bar_chart(["a"], [0.0])) == 0
    assert bar_chart(["a", "b", "c"], [0.2] * 3).height > bar_chart(["a"], [0.2]).height
    long = bar_chart(["a caption that is much too long for one line beside a bar"], [0.2])
    assert long.height > bar_chart(["a"], [0.2]).height and long.width == 640


def test_a_bar_chart_fits_a_square_with_letters_as_large_as_that_allows() -> None:
    """So that it can be read in a cell of a sheet too, which shows it about a third as large."""
    heights = {}
    for count in (2, 5, 8, 12, 40):
        chart = bar_chart([f"caption {number}" for number in range(count)], [1 / count] * count)
        heights[count] = chart.height
        row = chart.height / count  # of a name and its bar
        assert row > 640 / 16 or count > 12
        assert chart.height <= 640 or count == 40
    assert heights[2] < heights[5] < 640 < heights[40]
    assert heights[8] > 500 and heights[12] > 500
    half = bar_chart(["a", "b"], [0.5, 0.5], width=320)
    assert half.width == 320 and half.height == pytest.approx(heights[2] / 2, abs=8)


def curve_pixels(picture) -> list[tuple[int, int]]:
    pixels = picture.load()
    return [(x, y) for x in range(picture.width) for y in range(picture.height) if pixels[x, y] == LEADING]


def test_panels_have_a_curve_each_over_the_same_names() -> None:
    rising, falling = [0.70, 0.72, 0.74], [0.3, 0.2, 0.1]
    one = panel_chart(["a", "b", "c"], {"score": rising})
    two = panel_chart(["a", "b", "c"], {"score": rising, "diversity": falling})
    assert two.width == one.width == 640 and two.height > 1.5 * one.height
    points = curve_pixels(one)
    assert min(points)[1] > max(points)[1] + 80  # from the lower left to the upper right
    border = two.height - one.height + 16  # the first panel, and some of the title of the second
    upper = [point for point in curve_pixels(two) if point[1] < border]
    lower = [point for point in curve_pixels(two) if point[1] > border]
    assert min(upper)[1] > max(upper)[1] + 80 and max(lower)[1] > min(lower)[1] + 80
    assert abs(min(upper)[0] - min(lower)[0]) <= 1
    part = curve_pixels(panel_chart(["a", "b", "c"], {"score": [None, 0.72, 0.74]}))
    assert min(part)[0] > min(points)[0] + 100


@pytest.mark.parametrize("values", [[0.3], [0.0, 0.0], [-0.2, 0.9], [0.7, 0.70001], [0.1] * 60, [25.0, 1e4]])
def test_a_panel_of_any_values_can_be_drawn(values) -> None:
    chart = panel_chart([f"guidance {n}" for n in range(len(values))], {"a": values}, background="black")
    assert coloured(chart) > 20 and chart.getpixel((2, 2)) == (0, 0, 0)


@pytest.mark.parametrize("count", [1, 2, 9, 40, 500])
def test_a_curve_of_any_length_can_be_drawn(count) -> None:
    values = [number / count for number in range(1, count + 1)]
    assert coloured(curve_chart(values)) > 0
    black = curve_chart(values, title="Title", background="black")
    assert black.getpixel((2, 2)) == (0, 0, 0) and black.size == (640, 420)


def test_what_charts_refuse() -> None:
    with pytest.raises(ValueError, match="chart: found 2 names and 1 shares"):
        bar_chart(["a", "b"], [0.5])
    with pytest.raises(ValueError, match=r"chart: found shares from -1 to 0\.5, expected 0 to 1"):
        bar_chart(["a", "b"], [0.5, -1])
    with pytest.raises(ValueError, match=r"chart: found the values \[2\.0\]"):
        curve_chart([2.0])
    with pytest.raises(ValueError, match="chart: found 2 names and 0 panels"):
        panel_chart(["a", "b"], {})
    for values in ([1.0], [None, None]):
        with pytest.raises(ValueError, match=r"chart: found the values .* of 'score' for 2 names"):
            panel_chart(["a", "b"], {"score": values})
