"""Grid and edges against closed forms, and their tables of a tiny bundle."""

from __future__ import annotations

import json
import math

import pytest
import torch
from unclip.core.data.degradation import gaussian_blur
from unclip.core.evaluation.quality.config import SharpnessConfig, VarietyConfig
from unclip.core.evaluation.quality.edges import edge_profile, grid_energy
from unclip.core.evaluation.quality.evaluate import evaluate
from unclip.core.evaluation.quality.judges import ClipJudge
from unclip.core.evaluation.quality.tables import tables_of
from unclip.core.evaluation.quality.variety import mean_distance

from ...helpers.evaluation import config_for, write_squares


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("data"))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the grid of patches ---


def chessboard():
    """[64, 64] of patches of 4 × 4, by turns −1 and 1."""
    signs = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1.0
    return signs.repeat_interleave(4, 0).repeat_interleave(4, 1)


def test_patches_of_one_colour_have_all_their_energy_at_their_borders():
    images = 0.5 + 0.01 * chessboard().expand(2, 3, -1, -1)
    found = grid_energy(images, 4)
    assert found.at == pytest.approx(255 * 0.02, rel=1e-4) and found.between == pytest.approx(0, abs=1e-4)
    shifted = grid_energy(images.roll((2, 2), dims=(-2, -1)), 4)  # the same pattern, not at multiples of 4
    assert shifted.at == pytest.approx(0, abs=1e-4)
    # Of 63 steps along a line 15 are at multiples of 4; of the other 48 these are 16.
    assert shifted.between == pytest.approx(255 * 0.02 * math.sqrt(16 / 48), rel=1e-3)
    assert shifted.ratio == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_what_has_no_pattern_has_the_same_energy_everywhere(patch):
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    assert grid_energy(ramp, patch).ratio == pytest.approx(1, rel=1e-4)
    # The ramp has its steps along one of the two axes.
    assert grid_energy(ramp, patch).at == pytest.approx(255 / 63 / math.sqrt(2), rel=1e-3)
    grain = grid_energy(0.5 + 0.01 * noise(8, 3, 64, 64), patch)
    assert grain.ratio == pytest.approx(1, abs=0.05)
    assert grain.at == pytest.approx(255 * 0.01 * math.sqrt(2), rel=0.03)
    flat = grid_energy(torch.full((1, 3, 8, 8), 0.3), patch)
    assert (flat.at, flat.between, flat.ratio) == (0, 0, None)
    with pytest.raises(ValueError, match="patch is 1, expected at least 2"):
        grid_energy(ramp, 1)


def test_a_faint_pattern_shows_in_flat_parts_though_a_picture_lies_over_it():
    images = torch.full((1, 3, 64, 64), 0.8)
    images[..., 21:43, 21:43] = 0.1  # edges at no multiple of 4
    images += 0.002 * chessboard()
    images += 0.001 * noise(1, 3, 64, 64)
    assert grid_energy(images, 4).ratio < 1
    assert grid_energy(images, 4, limit=0.05).ratio > 3


# --- edges ---


def edge(sigma, angle=0.0, size=96):
    """[1, 3, size, size]: 0.2 and 0.8 on both sides of a line, blurred by σ: the integral of a Gaussian."""
    place = torch.arange(size, dtype=torch.double) - (size - 1) / 2
    across = place[None] * math.cos(angle) + place[:, None] * math.sin(angle) - 0.3
    return (0.2 + 0.6 * torch.special.ndtr(across / sigma)).expand(1, 3, -1, -1)


@pytest.mark.parametrize("sigma", [2.0, 2.5, 3.0])
@pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 4, 2.0])
def test_a_blurred_edge_has_the_profile_of_its_blur(sigma, angle):
    found = edge_profile(edge(sigma, angle))
    assert found.width == pytest.approx(sigma * math.sqrt(2 * math.pi), rel=0.06)
    assert found.overshoot == pytest.approx(0, abs=1e-3)
    assert sum(found.profile) == pytest.approx(1, rel=1e-6) and len(found.profile) == 17
    expected = [math.exp(-((t / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) for t in range(-8, 9)]
    assert found.profile == pytest.approx(expected, abs=0.015)
    assert found.edges >= 70


def test_a_step_is_a_pixel_wide_wherever_it_is():
    step = torch.full((1, 3, 48, 48), 0.9)
    step[..., :20] = 0.1
    for turned in (step, step.flip(-1), step.transpose(-1, -2), 1 - step):
        found = edge_profile(turned)
        assert found.width == pytest.approx(1, rel=1e-3) and found.overshoot == pytest.approx(0, abs=1e-6)


def test_a_halo_is_overshoot():
    sharpened = edge(2.0).clone()
    sharpened[..., 52:55] += 0.06  # a tenth of the contrast, on the bright side
    sharpened[..., 41:44] -= 0.03
    assert edge_profile(sharpened).overshoot == pytest.approx(0.15, abs=0.02)


def test_edges_are_looked_for_in_the_true_picture():
    true, soft = edge(0.5), edge(2.5)
    assert edge_profile(soft, located=true).width == pytest.approx(2.5 * math.sqrt(2 * math.pi), rel=0.05)
    moved = edge_profile(soft.roll(3, dims=-1), located=true)  # drawn beside its place
    assert moved.profile[8] < moved.profile[11]
    assert moved.width > 1.5 * edge_profile(soft.roll(3, dims=-1)).width
    assert edge_profile(torch.full((1, 3, 48, 48), 0.5), located=edge(0.5, size=48)) is None


def test_weak_steps_and_flat_pictures_have_no_edges():
    assert edge_profile(torch.full((2, 3, 48, 48), 0.5)) is None
    assert edge_profile(0.5 + 0.2 * (edge(1.0) - 0.5)) is None
    assert edge_profile(0.5 + 0.2 * (edge(1.0) - 0.5), contrast=0.1) is not None


def test_blurring_widens_and_sharpening_rings_in_a_picture_of_discs():
    place = torch.arange(128) - 63.5
    disc = ((place[None] ** 2 + place[:, None] ** 2).sqrt() < 40).float()
    sharp = gaussian_blur(disc.expand(1, 3, -1, -1), 7, 0.8)
    soft = gaussian_blur(sharp, 13, 2.0)
    assert edge_profile(soft).width > 1.8 * edge_profile(sharp).width
    ringing = sharp + 0.6 * (sharp - gaussian_blur(sharp, 7, 1.5))
    assert edge_profile(ringing).overshoot > edge_profile(sharp).overshoot + 0.1


# --- variety ---


def test_the_mean_distance_is_that_of_all_pairs():
    vectors = noise(7, 5)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    pairs = [1 - float(units[i] @ units[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_distance(3 * vectors) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert mean_distance(torch.eye(4)) == pytest.approx(1)
    assert mean_distance(torch.ones(3, 4)) == pytest.approx(0, abs=1e-12)
    base = noise(1, 64).double()
    near = base + 1e-5 * noise(32, 64).double()
    expected = 1e-10 * 63 / float(base.square().sum())  # what is at right angles to the base
    assert mean_distance(near) == pytest.approx(expected, rel=0.1)


# --- the tables of a bundle ---


def test_variety_and_sharpness_are_tables_beside_the_results(shards, bundle):
    config = config_for(
        shards,
        splits=(),
        priors=("diffusion", "autoregressive", "none"),
        variety=VarietyConfig(captions=3, seeds=4),
        sharpness=SharpnessConfig(pictures=5, upsamplers=1),
    )
    told = []
    found = evaluate(config, bundle, ClipJudge(bundle.clip), lambda *report: told.append(report))
    assert found.results == {} and found.samples == []
    assert json.loads(json.dumps(found.tables)) == found.tables
    variety = found.tables["variety"]
    assert (variety["captions"], variety["seeds"]) == (3, 4)
    for kind in ("named", "open"):
        assert variety["priors"]["none"][kind] == pytest.approx(0, abs=1e-9)
        assert variety["priors"]["diffusion"][kind] > 1e-5
        assert variety["priors"]["autoregressive"][kind] > 1e-5
    assert variety["priors"]["none"]["between"] > 1e-5 and variety["real"]["open"] > 1e-5
    sharpness = found.tables["sharpness"]
    assert (sharpness["pictures"], sharpness["prior"]) == (5, "diffusion")
    assert list(sharpness["sizes"]) == ["16", "32"]
    assert set(sharpness["sizes"]["32"]["edges"]) == {"real", "upsampled", "generated"}
    assert set(sharpness["sizes"]["16"]["edges"]) == {"real", "generated"}
    assert sharpness["sizes"]["16"]["grid"]["real"]["flat"]["at"] == 0
    assert sharpness["sizes"]["16"]["grid"]["generated"]["all"]["at"] > 1
    assert {report[0] for report in told} == {
        "sharpness",
        *(f"variety, prior {prior}" for prior in ("diffusion", "autoregressive", "none")),
    }
    assert all(0 < report[1] <= report[2] for report in told)
    titles = [table.title for table in tables_of(found.results, found.tables)]
    assert titles == [
        "mean cosine distance of embeddings over 4 seeds, 3 captions",
        "grid of patches: gradient in levels of 255, 5 pictures",
        "edges",
    ]
    again = evaluate(config, bundle, ClipJudge(bundle.clip)).tables
    assert again == found.tables


def test_upsamplers_that_are_not_there_are_named_before_anything_runs(shards, bundle):
    config = config_for(shards, splits=(), sharpness=SharpnessConfig(upsamplers=3))
    with pytest.raises(ValueError, match="upsamplers is 3; expected 0 to 2"):
        evaluate(config, bundle, ClipJudge(bundle.clip))
