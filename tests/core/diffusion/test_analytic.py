from __future__ import annotations

import math

import pytest
import torch
from unclip.core.diffusion.analytic import (
    OWN_SAMPLES,
    analytic_variance,
    estimate_eps_power,
    own_eps_power,
)
from unclip.core.diffusion.denoiser import Denoiser, Prediction
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.samplers import sample_ddpm
from unclip.core.diffusion.schedule import Schedule, make_schedule

STD, MEAN = 0.5, 0.4
FULL = make_schedule("cosine", 1000)


def denoiser(schedule: Schedule, mean: float = MEAN) -> Denoiser:
    """The exact one for data N(mean, STD²), independent in every dimension."""

    def call(x: torch.Tensor, step: int) -> Prediction:
        alpha = schedule.alphas_cumprod[step].item()
        gain = math.sqrt(alpha) * STD**2 / (alpha * STD**2 + 1 - alpha)
        return Prediction(mean + gain * (x - math.sqrt(alpha) * mean))

    return call


def eps_power(schedule: Schedule) -> torch.Tensor:
    """E‖ε̂‖²/d in closed form: ε̂ = √(1−ᾱ)·(x − √ᾱ·mean)/Var(x_t)."""
    noise = 1 - schedule.alphas_cumprod
    return noise / (schedule.alphas_cumprod * STD**2 + noise)


def reverse_variance(schedule: Schedule) -> torch.Tensor:
    """Var(x_{t−1} | x_t) of Gaussian data, from the joint Gaussian of both."""
    a, b = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    var, var_prev = a * STD**2 + 1 - a, b * STD**2 + 1 - b
    return var_prev - (a / b) * var_prev**2 / var


def data(rows: int, seed: int = 0, mean: float = MEAN) -> torch.Tensor:
    return mean + STD * torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [5, 64, 1000])
def test_the_optimal_variance_is_the_true_one(steps: int) -> None:
    schedule = FULL.respace(steps)
    variance = analytic_variance(schedule, eps_power(schedule))
    assert torch.allclose(variance, reverse_variance(schedule), rtol=1e-6, atol=1e-12)
    assert not torch.allclose(schedule.posterior_variance, variance, rtol=1e-2, atol=1e-12)
    assert (variance >= schedule.posterior_variance).all()


def test_a_full_table_serves_every_respacing() -> None:
    schedule = FULL.respace(7)
    assert torch.equal(
        analytic_variance(schedule, eps_power(FULL)), analytic_variance(schedule, eps_power(schedule))
    )


def test_the_table_is_estimated_from_samples() -> None:
    schedule = FULL.respace(9)
    # Two batches of other conditions: another mean, told to the denoiser alone.
    batches = [(data(6000), denoiser(schedule)), (data(3000, 1, -2.0), denoiser(schedule, -2.0))]
    table = estimate_eps_power(batches, schedule, generator=torch.Generator().manual_seed(2))
    assert table.shape == (9,) and table.dtype == torch.float64
    assert torch.allclose(table, eps_power(schedule), rtol=5 * math.sqrt(2 / 72_000))
    swapped = [(batches[0][0], batches[1][1])]
    wrong = estimate_eps_power(swapped, schedule, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(wrong, eps_power(schedule), rtol=0.1)
    again = estimate_eps_power(iter(batches), schedule, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again, table)


@pytest.mark.parametrize("steps", [10, 50])
def test_own_samples_take_the_place_of_training_samples(steps: int) -> None:
    """Of a network that is exact: two groups of rows, each with a mean of its own."""
    schedule, means = FULL.respace(steps), torch.tensor([MEAN, -2.0]).repeat_interleave(OWN_SAMPLES)[:, None]
    exact, told = denoiser(schedule, means), []
    table = own_eps_power(exact, exact, schedule, (2000,), groups=2, callbacks=(told.append, told.append))
    assert table.shape == (steps, 2) and table.dtype == torch.float64
    variance = analytic_variance(schedule, table)
    expected = reverse_variance(schedule)[:, None].expand(-1, 2)
    # Sampling adds no noise after index 0. The spread of the samples is that of a solver in few steps.
    assert torch.allclose(variance[1:], expected[1:], rtol=0.1 if steps == 10 else 0.02)
    assert not torch.allclose(schedule.posterior_variance[1:, None], expected[1:], rtol=0.1)
    assert torch.allclose(variance[:, 0], variance[:, 1], rtol=0.1)  # they differ in the mean alone
    assert [(step.index, step.total) for step in told] == [(i, steps) for i in range(steps)] * 2
    again = own_eps_power(exact, exact, schedule, (2000,), groups=2)
    assert torch.equal(again, table)


def test_a_table_for_each_group_gives_what_each_gives_alone() -> None:
    schedule = FULL.respace(9)
    tables = torch.stack([eps_power(schedule), 0.5 * eps_power(schedule)], dim=1)
    found = analytic_variance(schedule, tables, data_range=(-1.0, 1.0))
    for column in range(2):
        alone = analytic_variance(schedule, tables[:, column], data_range=(-1.0, 1.0))
        assert torch.equal(found[:, column], alone)
    full = torch.stack([eps_power(FULL), eps_power(FULL)], dim=1)
    assert analytic_variance(schedule, full).shape == (9, 2)
    with pytest.raises(ValueError, match="finite numbers"):
        analytic_variance(schedule, torch.zeros(9, 2, 2))


def test_rows_may_have_variances_of_their_own() -> None:
    schedule, generators = FULL.respace(6), image_generators(0, 3)
    x = draw_noise(generators, (8,))
    tables = analytic_variance(schedule, torch.rand(6, 3, generator=torch.Generator().manual_seed(1)))

    def sampled(rows: slice, table: torch.Tensor) -> torch.Tensor:
        return sample_ddpm(
            denoiser(schedule), x[rows], schedule, variance=table, generators=image_generators(5, 3)[rows]
        )

    together = sampled(slice(0, 3), tables)
    for row in range(3):
        alone = sampled(slice(row, row + 1), tables[:, row])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(sampled(slice(0, 1), tables[:, 1]), together[:1], atol=1e-3)
    with pytest.raises(ValueError, match=r"for each of 3 rows; found shape \(6, 2\)"):
        sampled(slice(0, 3), tables[:, :2])


def test_few_steps_sample_the_exact_law() -> None:
    """With the optimal variance the reverse chain of Gaussian data is exact whatever the number of steps."""
    schedule, generators = FULL.respace(4), image_generators(0, 2)
    x = draw_noise(generators, (100_000,))
    options = {"generators": generators}
    optimal = sample_ddpm(
        denoiser(schedule), x, schedule, variance=analytic_variance(schedule, eps_power(FULL)), **options
    )
    small = sample_ddpm(denoiser(schedule), x, schedule, variance="fixed_small", **options)
    assert optimal.mean().item() == pytest.approx(MEAN, abs=5 * STD / math.sqrt(200_000))
    assert optimal.std().item() == pytest.approx(STD, rel=5 / math.sqrt(400_000))
    assert small.std().item() < 0.9 * STD


def test_bounds() -> None:
    schedule = FULL.respace(10)
    small = schedule.posterior_variance
    # A statistic beyond its range is clipped: the lower bound of the variance is β̃.
    assert torch.equal(analytic_variance(schedule, torch.full((10,), 3.0)), small)
    top = analytic_variance(schedule, torch.full((10,), -1.0))
    assert torch.equal(top, analytic_variance(schedule, torch.zeros(10)))
    # Data that cannot vary leaves the posterior's own variance, data within [−1, 1] something above it.
    constant = analytic_variance(schedule, torch.zeros(10), data_range=(0.3, 0.3))
    assert torch.allclose(constant, small)
    bounded = analytic_variance(schedule, torch.zeros(10), data_range=(-1.0, 1.0))
    assert (bounded[1:] > small[1:]).all() and (bounded < top).any() and (bounded <= top).all()
    # That bound is the law of total variance: β̃ + coef1²·Var(x_0 | x_t), where Var ≤ ((high − low)/2)².
    ceiling = small + schedule.posterior_mean_coef1**2
    assert torch.allclose(bounded, torch.minimum(ceiling, top), rtol=1e-9)


def test_wrong_tables_are_refused() -> None:
    schedule = FULL.respace(10)
    with pytest.raises(ValueError, match=r"expected 10 or 1000 finite numbers; found shape \(11,\)"):
        analytic_variance(schedule, torch.zeros(11))
    with pytest.raises(ValueError, match="finite numbers"):
        analytic_variance(schedule, torch.full((10,), float("nan")))
    with pytest.raises(ValueError, match="batches: found none"):
        estimate_eps_power([], schedule, generator=torch.Generator())


def test_a_schedule_that_ends_without_signal_is_refused() -> None:
    schedule = make_schedule("linear", 20)
    assert schedule.alphas_cumprod[-1] == 0
    with pytest.raises(ValueError, match="does not tell the variance of a step from ᾱ = 0"):
        analytic_variance(schedule, torch.ones(20))
