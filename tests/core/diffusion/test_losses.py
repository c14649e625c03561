from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from unclip.core.diffusion.losses import (
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    hybrid_loss,
    min_snr_weights,
    posterior_mean,
    predicted_x0,
    prediction_target,
    q_sample,
    simple_loss,
    vlb_term,
)
from unclip.core.diffusion.schedule import make_schedule, schedule_from_betas

SCHEDULE = make_schedule("cosine", 1000)
T_CASES = torch.tensor([0, 3, 250, 999])
PREDICTIONS = ["eps", "x0", "v"]


def images(rows: int = 4, seed: int = 0) -> torch.Tensor:
    """8-bit levels in [−1, 1], the outermost among them."""
    g = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (rows, 3, 4, 4), generator=g)
    levels[:, 0, 0, 0], levels[:, 0, 0, 1] = 0, 255
    return levels / 127.5 - 1


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- noising and targets --------------------------------------------------------------------------------


def test_q_sample_is_the_closed_form_row_by_row() -> None:
    x0, noise = images(), normal(4, 3, 4, 4)
    x_t = q_sample(SCHEDULE, x0, T_CASES, noise)
    for row, t in enumerate(T_CASES):
        alpha = SCHEDULE.alphas_cumprod[t].item()
        expected = math.sqrt(alpha) * x0[row].double() + math.sqrt(1 - alpha) * noise[row].double()
        assert (x_t[row] - expected).abs().max() <= 1e-6
    assert x_t.dtype == torch.float32
    assert q_sample(SCHEDULE, x0.half(), T_CASES, noise.half()).dtype == torch.float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_lead_back_to_x0(prediction: str) -> None:
    x0, noise = images(), normal(4, 3, 4, 4)
    t = torch.tensor([0, 3, 250, 900])
    x_t = q_sample(SCHEDULE, x0, t, noise)
    target = prediction_target(SCHEDULE, x0, noise, t, prediction)
    assert (predicted_x0(SCHEDULE, target, x_t, t, prediction) - x0).abs().max() <= 1e-5
    off = predicted_x0(SCHEDULE, target + 0.1, x_t, t, prediction)
    assert (off - x0).abs().flatten(1).amax(dim=1).min() > 1e-4


def test_v_is_the_velocity() -> None:
    """v = dx/dφ along x = cos φ·x0 + sin φ·ε, by central differences."""
    x0, noise, t = images(1).double(), normal(1, 3, 4, 4).double(), torch.tensor([300])
    phi = math.acos(SCHEDULE.sqrt_alphas_cumprod[300].item())
    h = 1e-5
    ahead, behind = (math.cos(phi + d) * x0 + math.sin(phi + d) * noise for d in (h, -h))
    v = prediction_target(SCHEDULE, x0, noise, t, "v")
    assert (v - (ahead - behind) / (2 * h)).abs().max() <= 1e-6


def test_simple_loss_is_a_mean_per_sample() -> None:
    output, target = normal(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    loss = simple_loss(output, target)
    assert loss.shape == (3,)
    assert torch.allclose(loss, torch.stack([row.square().mean() for row in output]))
    assert simple_loss(output.half(), target).dtype == torch.float32
    with pytest.raises(ValueError, match=r"output \(3, 2, 4, 4\) and target \(3, 1, 4, 4\) differ"):
        simple_loss(output, target[:, :1])


# --- min-SNR --------------------------------------------------------------------------------------------


def test_min_snr_weights_are_those_of_the_paper() -> None:
    t = torch.arange(1000)
    snr = SCHEDULE.snr
    for prediction, scale in (("x0", torch.ones(1000)), ("eps", 1 / snr), ("v", 1 / (snr + 1))):
        weights = min_snr_weights(SCHEDULE, t, 5.0, prediction)
        assert weights.dtype == torch.float32
        assert torch.allclose(weights.double(), snr.clamp(max=5.0) * scale, rtol=1e-5)


def test_min_snr_weighting_does_not_depend_on_the_prediction_type() -> None:
    """The same error in x̂_0 costs the same whatever the network predicts: what the weights are for."""
    x0, noise, t = images(), normal(4, 3, 4, 4), torch.tensor([5, 200, 500, 900])
    x_t, wrong = q_sample(SCHEDULE, x0, t, noise), images(seed=9)
    costs = []
    for prediction in PREDICTIONS:
        # What a network of this type puts out when it takes `wrong` for x_0.
        signal = SCHEDULE.gather("sqrt_alphas_cumprod", t, x0)
        sigma = SCHEDULE.gather("sqrt_one_minus_alphas_cumprod", t, x0)
        implied_noise = (x_t - signal * wrong) / sigma
        output = prediction_target(SCHEDULE, wrong, implied_noise, t, prediction)
        target = prediction_target(SCHEDULE, x0, noise, t, prediction)
        costs.append(min_snr_weights(SCHEDULE, t, 5.0, prediction) * simple_loss(output, target))
    assert torch.allclose(costs[0], costs[1], rtol=1e-4)
    assert torch.allclose(costs[0], costs[2], rtol=1e-4)


def test_min_snr_at_zero_terminal_snr() -> None:
    schedule = schedule_from_betas([0.1, 0.5, 1.0])
    last = torch.tensor([2])
    assert min_snr_weights(schedule, last, 5.0, "eps").item() == 1.0
    assert min_snr_weights(schedule, last, 5.0, "v").item() == 0.0
    with pytest.raises(ValueError, match="gamma: found 0"):
        min_snr_weights(schedule, last, 0, "v")
    with pytest.raises(ValueError, match="prediction: found 'noise'"):
        min_snr_weights(schedule, last, 5.0, "noise")


# --- the variational bound ------------------------------------------------------------------------------


def test_kl_matches_the_library() -> None:
    mean1, mean2, log1, log2 = (normal(50, seed=i) for i in range(4))
    expected = kl_divergence(Normal(mean1, (0.5 * log1).exp()), Normal(mean2, (0.5 * log2).exp()))
    assert torch.allclose(gaussian_kl(mean1, log1, mean2, log2), expected, rtol=1e-4, atol=1e-5)
    assert gaussian_kl(mean1, log1, mean1, log1).abs().max() == 0


def test_discretized_likelihood_is_the_mass_of_the_level() -> None:
    mean = torch.tensor([-1.3, -1.0, -0.3, 0.004, 0.7, 1.0])
    levels = torch.arange(256) / 127.5 - 1  # [256]
    for log_scale in (-4.0, -2.0, 0.0):
        normal64 = Normal(mean.double(), math.exp(log_scale))
        x = levels[:, None].expand(256, 6)  # [256, 6]
        log_likelihood = discretized_gaussian_log_likelihood(x, mean, torch.tensor(log_scale))
        # All levels together are everything.
        assert torch.allclose(log_likelihood.double().exp().sum(dim=0), torch.ones(6).double(), atol=1e-4)
        upper, lower = normal64.cdf(x.double() + 1 / 255), normal64.cdf(x.double() - 1 / 255)
        upper, lower = upper.clone(), lower.clone()
        upper[-1], lower[0] = 1.0, 0.0
        mass = upper - lower
        sure = mass > 1e-9
        assert torch.allclose(log_likelihood.double()[sure], mass[sure].log(), atol=2e-3)


def test_discretized_likelihood_keeps_a_gradient_in_the_far_tail() -> None:
    log_scale = torch.tensor(-5.0, requires_grad=True)
    distance = 0.8
    value = discretized_gaussian_log_likelihood(torch.tensor(0.5), torch.tensor(0.5 - distance), log_scale)
    value.backward()
    # The nearest edge of the level, z scales away: log-mass ≈ −z²/2, its derivative by log σ ≈ z².
    z = (distance - 1 / 255) * math.exp(5.0)
    assert value.item() == pytest.approx(-(z**2) / 2, rel=1e-2)
    assert log_scale.grad.item() == pytest.approx(z**2, rel=1e-2)


def test_vlb_terms_against_closed_forms() -> None:
    x0, noise = images(), normal(4, 3, 4, 4)
    x_t = q_sample(SCHEDULE, x0, T_CASES, noise)
    mean = posterior_mean(SCHEDULE, normal(4, 3, 4, 4, seed=2).clamp(-1, 1), x_t, T_CASES)
    log_variance = 0.3 * normal(4, 3, 4, 4, seed=3) + SCHEDULE.gather("log_betas", T_CASES, x_t)
    terms = vlb_term(SCHEDULE, mean, log_variance, x0, x_t, T_CASES)
    assert terms.shape == (4,)
    model = Normal(mean.double(), (0.5 * log_variance.double()).exp())
    for row, t in enumerate(T_CASES.tolist()):
        if t == 0:
            continue
        a, b = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod_prev[t]
        beta = 1 - a / b
        true_mean = (b.sqrt() * beta * x0[row] + (1 - beta).sqrt() * (1 - b) * x_t[row]) / (1 - a)
        true = Normal(true_mean.double(), (beta * (1 - b) / (1 - a)).sqrt())
        expected = kl_divergence(true, Normal(model.loc[row], model.scale[row])).mean() / math.log(2)
        assert terms[row].item() == pytest.approx(expected.item(), rel=1e-3)
    nll = -discretized_gaussian_log_likelihood(x0[0], mean[0], 0.5 * log_variance[0]).mean() / math.log(2)
    assert terms[0].item() == pytest.approx(nll.item(), rel=1e-5)


def test_the_bound_is_zero_for_the_true_posterior() -> None:
    x0, t = images(), torch.tensor([1, 3, 250, 999])
    x_t = q_sample(SCHEDULE, x0, t, normal(4, 3, 4, 4))
    true_log_variance = SCHEDULE.gather("posterior_log_variance_clipped", t, x_t)
    mean = posterior_mean(SCHEDULE, x0, x_t, t)
    assert vlb_term(SCHEDULE, mean, true_log_variance, x0, x_t, t).abs().max() <= 1e-6
    assert (vlb_term(SCHEDULE, mean, true_log_variance + 0.1, x0, x_t, t) > 1e-3).all()


# --- hybrid ---------------------------------------------------------------------------------------------


def hybrid(output: torch.Tensor, prediction: str = "eps", **options):
    x0, noise = images(), normal(4, 3, 4, 4)
    x_t = q_sample(SCHEDULE, x0, T_CASES, noise)
    return hybrid_loss(SCHEDULE, output, x0, x_t, noise, T_CASES, prediction, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_hybrid_is_simple_plus_a_thousandth_of_the_whole_bound(prediction: str) -> None:
    output = 0.5 * normal(4, 6, 4, 4, seed=5)
    x0, noise = images(), normal(4, 3, 4, 4)
    x_t = q_sample(SCHEDULE, x0, T_CASES, noise)
    loss = hybrid(output, prediction)
    mean_output, range_output = output.chunk(2, dim=1)
    target = prediction_target(SCHEDULE, x0, noise, T_CASES, prediction)
    assert torch.allclose(loss.simple, simple_loss(mean_output, target))
    fraction = (range_output.double() + 1) / 2
    large = SCHEDULE.betas[T_CASES].log().reshape(4, 1, 1, 1)
    small = SCHEDULE.posterior_log_variance_clipped[T_CASES].reshape(4, 1, 1, 1)
    log_variance = (fraction * large + (1 - fraction) * small).float()
    x0_hat = predicted_x0(SCHEDULE, mean_output, x_t, T_CASES, prediction)
    vlb = vlb_term(SCHEDULE, posterior_mean(SCHEDULE, x0_hat, x_t, T_CASES), log_variance, x0, x_t, T_CASES)
    assert torch.allclose(loss.vlb, vlb, rtol=1e-4)
    # One of T terms was drawn: T times it estimates the sum, of which 0.001 is taken.
    assert torch.allclose(loss.total, loss.simple + 0.001 * 1000 * vlb, rtol=1e-4)
    assert torch.equal(hybrid(output, prediction, vlb_weight=0.0).total, loss.simple)


def test_the_bound_trains_the_variance_alone() -> None:
    output = (0.5 * normal(4, 6, 4, 4, seed=5)).requires_grad_()
    hybrid(output).vlb.sum().backward()
    mean_grad, range_grad = output.grad.chunk(2, dim=1)
    assert mean_grad.abs().max() == 0
    assert (range_grad.abs().flatten(1).amax(dim=1) > 0).all()
    output.grad = None
    hybrid(output).simple.sum().backward()
    mean_grad, range_grad = output.grad.chunk(2, dim=1)
    assert range_grad.abs().max() == 0 and mean_grad.abs().max() > 0


def test_hybrid_gradient_against_finite_differences() -> None:
    output = 0.5 * normal(4, 6, 4, 4, seed=5)
    leaf = output.clone().requires_grad_()
    hybrid(leaf, "v").total.sum().backward()
    direction = torch.zeros_like(output)
    direction[:, 3:] = normal(
        4, 3, 4, 4, seed=6
    )  # the variance half, on which both terms' derivative is whole
    h = 1e-2
    # Row by row: rows differ by orders of magnitude.
    difference = (hybrid(output + h * direction, "v").total - hybrid(output - h * direction, "v").total) / (
        2 * h
    )
    analytic = (leaf.grad * direction).flatten(1).sum(dim=1)
    assert torch.allclose(difference, analytic, rtol=2e-2, atol=1e-4)


def test_the_best_variance_is_where_the_bound_is_least() -> None:
    """Training the variance half alone by L_vlb finds the variance that the mean's error calls for."""
    t = torch.tensor([5])
    x0, noise = images(1), normal(1, 3, 4, 4)
    x_t = q_sample(SCHEDULE, x0, t, noise)
    grid = torch.linspace(-1, 1, 41)
    guess = x0 + 0.012 * normal(1, 3, 4, 4, seed=7)
    error = posterior_mean(SCHEDULE, guess, x_t, t) - posterior_mean(SCHEDULE, x0, x_t, t)
    best = (SCHEDULE.posterior_variance[5] + error.double().square().mean()).log()  # argmin of the mean KL
    losses = []
    for value in grid:
        output = torch.cat([guess, torch.full_like(x0, value.item())], dim=1)
        losses.append(hybrid_loss(SCHEDULE, output, x0, x_t, noise, t, "x0").vlb.item())
    small, large = SCHEDULE.posterior_log_variance_clipped[5], SCHEDULE.log_betas[5]
    fraction = (best - small) / (large - small)
    assert 0.1 < fraction < 0.9  # else the test says nothing
    found = grid[torch.tensor(losses).argmin()].item()
    assert found == pytest.approx((2 * fraction - 1).item(), abs=0.06)


def test_hybrid_survives_wild_outputs() -> None:
    output = (100 * normal(4, 6, 4, 4, seed=5)).clamp(-30, 30).requires_grad_()
    output.data[:, 3:].clamp_(-1.5, 1.5)
    loss = hybrid(output, "x0")
    loss.total.sum().backward()
    assert torch.isfinite(loss.total).all() and torch.isfinite(output.grad).all()


def test_hybrid_needs_twice_the_channels() -> None:
    with pytest.raises(ValueError, match="puts out 6 channels for 3; found 3"):
        hybrid(normal(4, 3, 4, 4))


def test_training_losses_compile_without_a_break() -> None:
    """Traced whole (no back end, so no compiler is needed): a training step may be one graph."""
    x0, noise, t = images(), normal(4, 3, 4, 4), T_CASES

    def step(output: torch.Tensor) -> torch.Tensor:
        x_t = q_sample(SCHEDULE, x0, t, noise)
        weights = min_snr_weights(SCHEDULE, t, 5.0, "v")
        return (weights * hybrid_loss(SCHEDULE, output, x0, x_t, noise, t, "v").total).mean()

    output = 0.5 * normal(4, 6, 4, 4, seed=5)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(output), step(output), rtol=1e-6)
