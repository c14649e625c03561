"""Newton–Schulz over X·Xᵀ against timm's plain iterations and against singular values."""

from __future__ import annotations

import pytest
import torch
from timm.optim.muon import _COEFFICIENTS as PRESETS
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor
from unclip.core.training.newton_schulz import gram_is_cheaper, orthogonalised_by_gram

QUINTIC = PRESETS["quintic"]


def matrices(rows: int, columns: int, spread: float) -> Tensor:
    """[2, rows, columns] whose singular values fall evenly by ``spread`` powers of ten."""
    drawn = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    return left * torch.logspace(0, -spread, values.shape[-1]) @ right


@pytest.mark.parametrize(("rows", "columns"), [(24, 216), (216, 24), (48, 48), (5, 300)])
@pytest.mark.parametrize(("spread", "tolerance"), [(1.0, 1e-5), (8.0, 1e-3)])
def test_it_is_timms_in_float64(rows: int, columns: int, spread: float, tolerance: float) -> None:
    given = matrices(rows, columns, spread)
    kept = given.clone()
    found = orthogonalised_by_gram(given, QUINTIC, 1e-7)
    expected = zeropower_via_newtonschulz(given.double(), 5, QUINTIC, eps=1e-7, dtype=torch.float64)
    assert torch.equal(given, kept)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < tolerance
    one_less = zeropower_via_newtonschulz(given.double(), 4, QUINTIC, eps=1e-7, dtype=torch.float64)
    assert (found - one_less).norm() / expected.norm() > 10 * tolerance


def test_singular_values_end_near_one() -> None:
    found = orthogonalised_by_gram(matrices(32, 288, 2.0), QUINTIC, 1e-7)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3


def test_no_gradient_stays_none() -> None:
    assert not orthogonalised_by_gram(torch.zeros(1, 8, 72), QUINTIC, 1e-7).any()


def test_it_is_for_oblong_matrices() -> None:
    assert gram_is_cheaper(256, 2304)
    assert gram_is_cheaper(2304, 256)
    assert not gram_is_cheaper(512, 512)
