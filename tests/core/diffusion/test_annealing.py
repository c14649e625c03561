"""Condition annealing (CADS, 2310.17347) in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from unclip.core.diffusion.annealing import NOISE, annealed, annealing
from unclip.core.diffusion.schedule import make_schedule

FULL = make_schedule("cosine", 1000)


def test_the_papers_thresholds() -> None:
    """γ of section 3 with τ_1 = 0.6 and τ_2 = 0.9 at every timestep."""
    time = torch.arange(1000, dtype=torch.float64) / 999
    expected = ((0.9 - time) / 0.3).clamp(0, 1)
    assert torch.allclose(annealing(FULL, 0.4), expected, atol=1e-12)
    assert (annealing(FULL, 0.4) == 0).sum() == 100 and (annealing(FULL, 0.4) == 1).sum() == 600


def test_off_is_the_condition_everywhere_and_more_is_ever_less_of_it() -> None:
    shares = [annealing(FULL, until).mean().item() for until in (0.0, 0.001, 0.2, 0.4, 0.8, 1.0)]
    assert shares[0] == 1 and shares[1] == pytest.approx(1, abs=2e-3)
    assert shares == sorted(shares, reverse=True)
    # A quarter of noise alone, and half of what lies between: 1 − 5/8·until.
    assert shares[2:] == pytest.approx([1 - 0.625 * until for until in (0.2, 0.4, 0.8, 1.0)], abs=2e-3)
    few = FULL.respace(5)
    assert torch.equal(annealing(few, 0.4), annealing(FULL, 0.4)[few.timesteps])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9])
def test_what_is_left_of_a_condition(gamma: float) -> None:
    """Mean and deviation of each row stay; its direction is that of a mixture of independent normals."""
    generator = torch.Generator().manual_seed(0)
    condition, noise = (torch.randn(3, 200_000, generator=generator) for _ in range(2))
    condition = torch.tensor([[1.0], [0.5], [2.0]]) * condition + torch.tensor([[0.0], [3.0], [-1.0]])
    found = annealed(condition, noise, gamma)
    for measure in (torch.mean, torch.std):
        assert torch.allclose(measure(found, dim=-1), measure(condition, dim=-1), atol=1e-4)
    scale = torch.tensor([1.0, 0.5, 2.0])
    signal, random = math.sqrt(gamma) * scale, NOISE * math.sqrt(1 - gamma)
    expected = signal / (signal.square() + random**2).sqrt()
    pairs = zip(condition, found, expected.tolist(), strict=True)
    for before, after, correlation in pairs:
        assert torch.corrcoef(torch.stack([before, after]))[0, 1].item() == pytest.approx(
            correlation, abs=0.01
        )


def test_a_whole_condition_stays() -> None:
    condition = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(annealed(condition, torch.randn(2, 50), 1.0), condition, atol=1e-6)
