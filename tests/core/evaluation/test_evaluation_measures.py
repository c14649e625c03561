"""The measures, against closed forms and published values."""

from __future__ import annotations

import math

import pytest
import torch
from unclip.core.data.captions import named_colour, plain_backgrounds
from unclip.core.evaluation.quality.colour import background_hits, border_colour, nearest_names, srgb_to_lab
from unclip.core.evaluation.quality.distribution import cmmd, precision_recall, squared_mmd
from unclip.core.evaluation.quality.retrieval import clip_hits, draw_candidates, pixel_hits
from unclip.core.evaluation.statistics import Proportion, wilson_interval

PALETTE = {background.name: named_colour(background.name) for background in plain_backgrounds()}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------------- proportions


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # Newcombe, Statistics in Medicine 1998, 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_its_published_values(hits, total, low, high):
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=5e-5)
    # counting failures instead mirrors the interval
    assert wilson_interval(total - hits, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_proportion_counts_and_reports():
    found = Proportion.of(torch.tensor([True, False, True, True]))
    assert (found.hits, found.total, found.value) == (3, 4, 0.75)
    assert found.to_json() == {"value": 0.75, "interval95": list(wilson_interval(3, 4)), "hits": 3, "of": 4}
    with pytest.raises(ValueError, match="found 5 hits of 4"):
        Proportion(5, 4)


# ----------------------------------------------------------------------------------------------- R-precision


def test_candidates_hold_the_right_one_first_and_different_others():
    candidates = draw_candidates(30, 10, seed=3)
    assert candidates.shape == (30, 10)
    assert candidates[:, 0].tolist() == list(range(30))
    assert all(len(set(row)) == 10 for row in candidates.tolist())
    assert set(candidates.flatten().tolist()) == set(range(30))
    assert torch.equal(candidates, draw_candidates(30, 10, seed=3))
    assert not torch.equal(candidates, draw_candidates(30, 10, seed=4))


@pytest.mark.parametrize("candidates", [1, 31])
def test_a_wrong_number_of_candidates_is_refused(candidates):
    with pytest.raises(ValueError, match=f"candidates is {candidates}; expected 2 to 30"):
        draw_candidates(30, candidates, seed=0)


def test_random_pictures_are_found_once_in_a_hundred():
    candidates = draw_candidates(1500, 100, seed=0)
    images, captions = normal(1500, 16, seed=1), normal(1500, 16, seed=2)
    assert 5 <= clip_hits(images, captions, candidates).sum() <= 27  # 15 expected, ± 3 standard deviations
    images, renders = normal(1500, 3, 4, 4, seed=1), normal(1500, 3, 4, 4, seed=2)
    assert 5 <= pixel_hits(images, renders, candidates).sum() <= 27


def test_a_judge_that_looks_the_caption_up_finds_every_true_picture_and_no_swapped_one():
    candidates = draw_candidates(40, 20, seed=0)
    known = normal(40, 8)
    # only the direction counts
    assert clip_hits(3 * known, known / 5, candidates).all()
    assert not clip_hits(known.roll(1, dims=0), known, candidates).any()
    renders = normal(40, 3, 5, 5)
    assert pixel_hits(renders + 0.01 * normal(40, 3, 5, 5, seed=1), renders, candidates).all()
    assert not pixel_hits(renders.roll(1, dims=0), renders, candidates).any()


def test_pixels_are_compared_by_difference_and_not_by_correlation():
    renders = torch.stack([torch.full((3, 2, 2), value) for value in (0.2, 0.5, 0.9)])
    candidates = draw_candidates(3, 3, seed=0)
    assert pixel_hits(renders + 0.1, renders, candidates).all()


def test_a_tie_is_a_miss():
    candidates = draw_candidates(10, 5, seed=0)
    assert not clip_hits(torch.ones(10, 4), torch.ones(10, 4), candidates).any()
    assert not pixel_hits(torch.ones(10, 3, 2, 2), torch.ones(10, 3, 2, 2), candidates).any()


# -------------------------------------------------------------------------------------------------- colours


def test_lab_of_known_colours():
    colours = torch.tensor(
        [[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]]
    )
    expected = torch.tensor(
        [
            [100.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [53.24, 80.09, 67.20],
            [87.73, -86.18, 83.18],
            [32.30, 79.19, -107.86],
            [53.59, 0.0, 0.0],
        ],
        dtype=torch.float64,
    )
    assert (srgb_to_lab(colours / 255) - expected).abs().max() < 0.02


def framed(colour, inside, size=64, frame=4):
    """[3, size, size]: a square of one colour in a frame of another."""
    image = torch.tensor(colour, dtype=torch.float32)[:, None, None].repeat(1, size, size) / 255
    image[:, frame:-frame, frame:-frame] = torch.tensor(inside, dtype=torch.float32)[:, None, None] / 255
    return image


def test_every_named_background_is_recognised_whatever_is_inside():
    images = torch.stack([framed(colour, (10, 200, 30)) for colour in PALETTE.values()])
    assert torch.allclose(border_colour(images), torch.tensor(list(PALETTE.values())) / 255)
    assert nearest_names(border_colour(images), PALETTE) == list(PALETTE)
    assert background_hits(images, list(PALETTE), PALETTE).all()
    names = list(PALETTE)
    assert not background_hits(images, [*names[1:], names[0]], PALETTE).any()


def test_the_border_has_the_width_it_is_given_and_at_least_a_pixel():
    image = framed((255, 255, 255), (0, 0, 0), size=32, frame=2)[None]
    assert border_colour(image, border=2 / 32).min() == 1
    assert border_colour(image, border=4 / 32).max() == pytest.approx(240 / 448)  # white of all border pixels
    assert border_colour(image, border=0).min() == 1


def test_the_median_sees_past_a_picture_that_reaches_the_edge():
    image = framed(PALETTE["pale blue"], (0, 0, 0))[None]
    image[:, :, 12:52] = 0  # across the whole width: a third of the border
    assert nearest_names(border_colour(image, "median"), PALETTE) == ["pale blue"]
    assert nearest_names(border_colour(image, "mean"), PALETTE) != ["pale blue"]


def test_colours_are_compared_as_eyes_do():
    # In sRGB this dark green is nearer to black than to green.
    palette = {"black": (0, 0, 0), "green": (0, 255, 0)}
    assert nearest_names(torch.tensor([[0, 120, 0]]) / 255, palette) == ["green"]


# ---------------------------------------------------------------------------------------------- distributions


def test_a_set_is_at_distance_zero_from_itself():
    points = normal(50, 8)
    assert cmmd(points, points) == pytest.approx(0, abs=1e-12)
    assert cmmd(points, points[torch.randperm(50)]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_of_two_gaussians(shift):
    """E k over N(μ, s²I) and N(μ', s'²I) is (σ²/(σ²+s²+s'²))^{D/2} exp(−‖μ−μ'‖² / 2(σ²+s²+s'²))."""
    dim, sigma, spread, n, m = 3, 1.5, (1.0, 0.7), 1200, 1000
    x, y = spread[0] * normal(n, dim, seed=1), spread[1] * normal(m, dim, seed=2) + shift

    def kernel(first, second, distance=0.0):
        width = sigma**2 + first**2 + second**2
        return (sigma**2 / width) ** (dim / 2) * math.exp(-distance / (2 * width))

    def within(s, count):  # a biased estimate holds each element's pair with itself
        return 1 / count + (1 - 1 / count) * kernel(s, s)

    cross = kernel(*spread, distance=dim * shift**2)
    expected = within(spread[0], n) + within(spread[1], m) - 2 * cross
    found = squared_mmd(x, y, sigma)
    assert found == pytest.approx(expected, abs=0.01)
    assert found != pytest.approx(expected + cross, abs=0.05)  # a cross term counted once is told apart


def test_cmmd_has_the_papers_scale_and_looks_at_directions_only():
    x, y = torch.eye(4)[:1], torch.eye(4)[1:2]  # one point each, at distance √2
    expected = 1000 * (2 - 2 * math.exp(-2 / (2 * 10**2)))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(7 * x, y / 3) == pytest.approx(expected, rel=1e-9)


def test_precision_and_recall_of_clouds():
    real, same = normal(300, 2, seed=1), normal(300, 2, seed=2)
    alike = precision_recall(real, same)
    assert alike.precision > 0.85 and alike.recall > 0.85
    far = precision_recall(real, same + 50)
    assert (far.precision, far.recall) == (0, 0)
    # A generator stuck in one mode is precise and recalls little; one that invents a mode loses precision.
    two_modes = torch.cat([real, real + 50])
    collapsed = precision_recall(two_modes, same)
    assert collapsed.precision > 0.85 and 0.4 < collapsed.recall < 0.5
    invented = precision_recall(same, two_modes)
    assert 0.4 < invented.precision < 0.5 and invented.recall > 0.85


def test_precision_counts_the_balls_of_real_points_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    generated = torch.tensor([[-1.5], [4.9], [5.1], [17.5]])
    # Radii to the 1st neighbour: 1, 1, 2, 7 around 0, 1, 3, 10: −1.5 and 17.5 are outside of all balls.
    assert precision_recall(real, generated, neighbours=1).precision == 0.5
    # To the 2nd: 3, 2, 3, 9. All but nothing: 17.5 is 7.5 from 10, −1.5 is 1.5 from 0.
    assert precision_recall(real, generated, neighbours=2).precision == 1
    # Swapped, the balls of −1.5, 4.9, 5.1, 17.5 have radii 6.4, 0.2, 0.2, 12.4.
    assert precision_recall(real, generated, neighbours=1).recall == 1
    assert precision_recall(generated, real, neighbours=1).precision == 1


@pytest.mark.parametrize("neighbours", [0, 5])
def test_neighbours_must_fit_the_sets(neighbours):
    with pytest.raises(ValueError, match=f"neighbours is {neighbours}; expected 1 to 4"):
        precision_recall(normal(9, 2), normal(5, 2), neighbours)
