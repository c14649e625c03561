from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from unclip.core.diffusion.denoiser import (
    ClampedDenoiser,
    DynamicThresholdDenoiser,
    NetworkDenoiser,
    Prediction,
)
from unclip.core.diffusion.schedule import make_schedule, schedule_from_betas
from unclip.core.diffusion.spec import DiffusionSpec

from ...helpers.gaussian import example_gaussian


def constant(x0: torch.Tensor, log_variance: torch.Tensor | None = None):
    return lambda x, step: Prediction(x0, log_variance)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_every_prediction_type_gives_the_exact_x0(prediction: str, step: int) -> None:
    gaussian, schedule = example_gaussian(), make_schedule("linear", 1000).respace(10)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    x0 = gaussian.denoiser(schedule, prediction)(x, step).x0
    exact = gaussian.denoise(x, schedule.alphas_cumprod[step].item())
    # ε divides by √ᾱ, 0.006 at the last step of this schedule: that much of float32 is lost there.
    tolerance = 1e-6 / schedule.sqrt_alphas_cumprod[step].item() if prediction == "eps" else 1e-6
    assert x0.dtype == torch.float32
    assert (x0 - exact).abs().max() <= tolerance
    wrong = gaussian.denoise(x, schedule.alphas_cumprod[(step + 1) % 10].item())
    assert (x0 - wrong).abs().max() > 10 * tolerance


def test_learned_range_interpolates_between_the_two_variances() -> None:
    schedule = make_schedule("cosine", 1000).respace(25)
    spec = DiffusionSpec(prediction="x0", variance="learned_range")
    x = torch.zeros(1, 3, 4, 4)
    for value, expected in ((-1.0, schedule.posterior_variance), (1.0, schedule.betas)):
        denoiser = NetworkDenoiser(lambda x, step, v=value: torch.full((1, 6, 4, 4), v), schedule, spec)
        prediction = denoiser(x, 12)
        assert prediction.x0.shape == prediction.log_variance.shape == x.shape
        assert torch.equal(prediction.x0, torch.full_like(x, value))  # the first half, not the second
        assert prediction.log_variance[0, 0, 0, 0].exp().item() == pytest.approx(
            expected[12].item(), rel=1e-5
        )
    halfway = NetworkDenoiser(lambda x, step: torch.zeros(1, 6, 4, 4), schedule, spec)(x, 12).log_variance
    geometric = (schedule.posterior_variance[12] * schedule.betas[12]).sqrt()
    assert halfway[0, 0, 0, 0].exp().item() == pytest.approx(geometric.item(), rel=1e-5)


def test_half_precision_output_becomes_float32() -> None:
    schedule = make_schedule("cosine", 10)
    denoiser = NetworkDenoiser(lambda x, step: x.half(), schedule, DiffusionSpec(prediction="v"))
    assert denoiser(torch.ones(1, 2), 3).x0.dtype == torch.float32


def test_the_network_is_called_with_the_step() -> None:
    steps = []
    denoiser = NetworkDenoiser(
        lambda x, step: steps.append(step) or x, make_schedule("cosine", 10), DiffusionSpec(prediction="x0")
    )
    denoiser(torch.zeros(1, 2), 7)
    assert steps == [7]


def test_wrong_outputs_are_refused() -> None:
    schedule, x = make_schedule("cosine", 10), torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"must have 3 channels .* found \(1, 5, 4, 4\)"):
        NetworkDenoiser(lambda x, step: torch.zeros(1, 5, 4, 4), schedule, DiffusionSpec())(x, 1)
    learned = DiffusionSpec(variance="learned_range")
    with pytest.raises(ValueError, match=r"'learned_range' its output must have 6 channels"):
        NetworkDenoiser(lambda x, step: x, schedule, learned)(x, 1)
    with pytest.raises(ValueError, match=r"prediction: found 'noise', expected one of eps, x0, v"):
        NetworkDenoiser(lambda x, step: x, schedule, DiffusionSpec(prediction="noise"))(x, 1)


def test_a_variance_that_the_spec_does_not_use_is_dropped() -> None:
    schedule, x = (
        make_schedule("cosine", 10),
        torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    )
    plain = NetworkDenoiser(lambda x, step: 0.5 * x, schedule, DiffusionSpec())(x, 1)
    with_variance = NetworkDenoiser(lambda x, step: torch.cat([0.5 * x, x], 1), schedule, DiffusionSpec())(
        x, 1
    )
    assert torch.equal(with_variance.x0, plain.x0) and with_variance.log_variance is None


def test_a_noise_network_cannot_start_without_any_signal() -> None:
    zero_snr = schedule_from_betas([0.1, 0.5, 1.0])
    with pytest.raises(ValueError, match="zero terminal SNR"):
        NetworkDenoiser(lambda x, step: x, zero_snr, DiffusionSpec(prediction="eps"))
    NetworkDenoiser(lambda x, step: x, zero_snr, DiffusionSpec(prediction="v"))


def test_clamp_keeps_the_variance() -> None:
    log_variance = torch.tensor([[3.0, 4.0]])
    prediction = ClampedDenoiser(constant(torch.tensor([[-3.0, 1.5]]), log_variance), 2.0)(
        torch.zeros(1, 2), 0
    )
    assert prediction.x0.tolist() == [[-2.0, 1.5]]
    assert prediction.log_variance is log_variance
    with pytest.raises(ValueError, match="limit of x0: found 0"):
        ClampedDenoiser(constant(log_variance), 0)


def test_dynamic_threshold_scales_by_the_quantile() -> None:
    x0 = torch.stack([torch.linspace(-4, 4, 101), torch.linspace(-0.5, 0.5, 101)])  # [2, 101]
    out = DynamicThresholdDenoiser(constant(x0), quantile=0.5)(x0, 0).x0
    assert torch.allclose(out[0], x0[0].clamp(-2, 2) / 2)  # half of |x0| is below 2
    assert torch.equal(out[1], x0[1])  # within the limits: left alone, not blown up
    wide = DynamicThresholdDenoiser(constant(x0), quantile=0.5, limit=1.5)(x0, 0).x0
    assert torch.allclose(wide[0], x0[0].clamp(-2, 2) * 0.75)


def test_dynamic_threshold_matches_diffusers() -> None:
    x0 = 2 * torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x0[1] *= 0.1
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=100.0)
    reference = scheduler._threshold_sample(x0)
    ours = DynamicThresholdDenoiser(constant(x0), quantile=0.9)(x0, 0).x0
    plain = ClampedDenoiser(constant(x0), 1.0)(x0, 0).x0
    assert (ours - reference).abs().max() <= 1e-6
    assert (plain - reference).abs().max() > 1e-2


@pytest.mark.parametrize("quantile", [0.0, 1.5, -1.0])
def test_dynamic_threshold_refuses_impossible_shares(quantile: float) -> None:
    with pytest.raises(ValueError, match="dynamic threshold: found"):
        DynamicThresholdDenoiser(constant(torch.zeros(1, 1)), quantile)
