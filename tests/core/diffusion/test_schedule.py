from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UnCLIPScheduler
from unclip.core.diffusion.schedule import (
    TABLES,
    Schedule,
    make_schedule,
    schedule_from_alphas_cumprod,
    schedule_from_betas,
)


def test_linear_schedule_has_the_published_ends() -> None:
    betas = make_schedule("linear", 1000).betas
    assert betas.dtype == torch.float64
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert betas[-1].item() == pytest.approx(2e-2, rel=1e-9)
    # Half as many steps, twice the β: the same total noise.
    half = make_schedule("linear", 500)
    assert half.betas[-1].item() == pytest.approx(4e-2, rel=1e-9)


def test_cosine_schedule_follows_the_closed_form_until_the_cap() -> None:
    schedule = make_schedule("cosine", 1000)
    u = (torch.arange(1, 1001, dtype=torch.float64) / 1000 + 0.008) / 1.008
    expected = torch.cos(u * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(schedule.alphas_cumprod[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert schedule.betas[-1].item() == pytest.approx(0.999, rel=1e-9)  # the closed form would be 1


@pytest.mark.parametrize(("name", "theirs"), [("cosine", "squaredcos_cap_v2"), ("linear", "linear")])
def test_tables_match_diffusers(name: str, theirs: str) -> None:
    reference = DDPMScheduler(beta_schedule=theirs, beta_start=1e-4, beta_end=2e-2).alphas_cumprod.double()
    ours = make_schedule(name, 1000).alphas_cumprod
    other = make_schedule("linear" if name == "cosine" else "cosine", 1000).alphas_cumprod
    assert (ours - reference).abs().max() <= 1e-5
    assert (other - reference).abs().max() > 1e-1


@pytest.mark.parametrize("steps", [None, 7])
def test_posterior_tables_follow_from_bayes(steps: int | None) -> None:
    schedule = make_schedule("cosine", 1000)
    if steps is not None:
        schedule = schedule.respace(steps)
    # q(x_prev | x_t, x_0) ∝ N(x_t; √α·x_prev, β) · N(x_prev; √ᾱ_prev·x_0, 1 − ᾱ_prev): precisions add up.
    alpha_bar, previous = schedule.alphas_cumprod[1:], schedule.alphas_cumprod[:-1]
    alpha = alpha_bar / previous
    precision = alpha / (1 - alpha) + 1 / (1 - previous)
    assert torch.allclose(schedule.posterior_variance[1:], 1 / precision, rtol=1e-9)
    assert torch.allclose(
        schedule.posterior_mean_coef1[1:], previous.sqrt() / (1 - previous) / precision, rtol=1e-9
    )
    assert torch.allclose(
        schedule.posterior_mean_coef2[1:], alpha.sqrt() / (1 - alpha) / precision, rtol=1e-9
    )
    # Index 0 steps to the clean sample itself.
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_mean_coef1[0].item() == pytest.approx(1)
    assert schedule.posterior_mean_coef2[0] == 0
    assert (
        schedule.posterior_log_variance_clipped[0].item() == schedule.posterior_log_variance_clipped[1].item()
    )


@pytest.mark.parametrize("steps", [2, 7, 25, 27, 50, 64, 250, 1000])
def test_even_respacing_takes_the_timesteps_of_unclip(steps: int) -> None:
    scheduler = UnCLIPScheduler()
    scheduler.set_timesteps(steps)
    respaced = make_schedule("cosine", 1000).respace(steps)
    assert respaced.timesteps.tolist() == scheduler.timesteps.tolist()[::-1]


def test_respacing_keeps_the_process_at_the_kept_timesteps() -> None:
    full = make_schedule("linear", 1000)
    respaced = full.respace(9)
    assert len(respaced) == 9 and respaced.num_train_timesteps == 1000
    assert torch.equal(respaced.alphas_cumprod, full.alphas_cumprod[respaced.timesteps])
    # Products of the skipped steps' α are the α of the long steps.
    kept = [-1, *respaced.timesteps.tolist()]
    products = torch.stack([(1 - full.betas[a + 1 : b + 1]).prod() for a, b in pairwise(kept)])
    assert torch.allclose(1 - respaced.betas, products, rtol=1e-9)
    # And a respaced schedule can be respaced again, by its own timesteps.
    again = respaced.respace(3)
    assert again.timesteps.tolist() == [0, 500, 999]


def test_karlo_upsampler_timesteps() -> None:
    full = make_schedule("cosine", 1000)
    steps = [999, 832, 666, 500, 333, 166, 0]
    assert full.respace(steps).timesteps.tolist() == steps[::-1]
    assert full.respace(np.array(steps)).timesteps.tolist() == full.respace(7).timesteps.tolist()


def test_trailing_respacing_ends_at_the_noisiest_and_skips_the_cleanest() -> None:
    respaced = make_schedule("cosine", 1000).respace(4, spacing="trailing")
    assert respaced.timesteps.tolist() == [249, 499, 749, 999]
    assert make_schedule("cosine", 1000).respace(1000, spacing="trailing").timesteps.tolist() == list(
        range(1000)
    )


def test_one_step_starts_at_pure_noise() -> None:
    full = make_schedule("cosine", 1000)
    for spacing in ("even", "trailing"):
        one = full.respace(1, spacing=spacing)
        assert one.timesteps.tolist() == [999]
        assert all(torch.isfinite(getattr(one, name)).all() for name in TABLES)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (1001, r"steps: found 1001, but the noise schedule has 1000 timesteps; choose 1…1000"),
        (0, r"steps: found 0"),
        (-3, r"steps: found -3"),
        (True, r"steps: found True"),
        ([], r"empty list"),
        ([1, 1], r"twice the same"),
        ([0, 1000], r"\[1000\] are not possible"),
    ],
)
def test_impossible_steps_are_refused(steps, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule("cosine", 1000).respace(steps)


def test_unknown_names_are_refused() -> None:
    schedule = make_schedule("cosine", 10)
    with pytest.raises(ValueError, match=r"found 'sigmoid', expected one of cosine, linear"):
        make_schedule("sigmoid", 10)
    with pytest.raises(ValueError, match=r"spacing: found 'backwards'"):
        schedule.respace(3, spacing="backwards")
    with pytest.raises(ValueError, match=r"unknown table 'beta'"):
        schedule.table("beta", "cpu")
    with pytest.raises(ValueError, match=r"at least 20, found 10"):
        make_schedule("linear", 10)
    with pytest.raises(ValueError, match=r"num_timesteps: found 0"):
        make_schedule("cosine", 0)


def test_given_betas_keep_double_precision() -> None:
    betas = [0.1, 0.2, 1 / 3]
    schedule = schedule_from_betas(betas)
    assert torch.allclose(schedule.betas, torch.tensor(betas, dtype=torch.float64), rtol=1e-14)
    again = schedule_from_alphas_cumprod(schedule.alphas_cumprod.numpy())
    assert torch.equal(again.alphas_cumprod, schedule.alphas_cumprod)
    assert again.timesteps.tolist() == [0, 1, 2] and again.num_train_timesteps == 3
    assert schedule_from_betas([0.5, 1.0]).alphas_cumprod[-1] == 0  # zero terminal SNR is a schedule


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.5], [0.1, float("nan")], [[0.1]], []])
def test_impossible_betas_are_refused(betas) -> None:
    with pytest.raises(ValueError, match=r"betas: expected|non-empty"):
        schedule_from_betas(betas)


@pytest.mark.parametrize("alphas", [[1.0, 0.5], [0.5, 0.6], [0.5, 0.5], [0.5, -0.1], [0.5, float("nan")]])
def test_impossible_alphas_are_refused(alphas) -> None:
    with pytest.raises(ValueError, match="decrease strictly"):
        schedule_from_alphas_cumprod(alphas)


def test_direct_construction_is_checked() -> None:
    a = torch.tensor([0.9, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        Schedule(a.float(), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="one length"):
        Schedule(a, torch.tensor([0, 1, 2]), 3)
    for timesteps in ([0, 2], [1, 0], [-1, 0]):
        with pytest.raises(ValueError, match=r"ascend within 0…1"):
            Schedule(a, torch.tensor(timesteps), 2)
    with pytest.raises(FrozenInstanceError):
        Schedule(a, torch.tensor([0, 1]), 2).num_train_timesteps = 3


def test_tables_are_cast_once_and_can_be_trained_with() -> None:
    schedule = make_schedule("cosine", 10)
    assert schedule.table("snr", "cpu") is schedule.table("snr", torch.device("cpu"))
    assert schedule.table("snr", "cpu").dtype == torch.float32
    # "cpu:0" stands for a device that was not asked before, first met by an evaluation.
    with torch.inference_mode():
        table = schedule.table("snr", "cpu:0")
        fresh = make_schedule("cosine", 10).table("snr", "cpu")
    assert schedule.table("snr", "cpu:0") is table
    assert not table.is_inference() and not fresh.is_inference()
    gathered = schedule.gather("snr", torch.tensor([3, 0]), torch.zeros(2, 4, 5, 6))
    assert gathered.shape == (2, 1, 1, 1)
    assert torch.allclose(gathered.flatten().double(), schedule.snr[[3, 0]], rtol=1e-6)
