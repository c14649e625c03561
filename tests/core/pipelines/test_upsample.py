from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from unclip.core.diffusion.low_resolution import corrupt, resize_condition
from unclip.core.networks.unet import UNet
from unclip.core.pipelines import upsample as pipeline
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import UpsamplerConditions, UpsamplerStage

from ...helpers.bundle import tiny_bundle

QUICK = UpsampleOptions(steps=3)


@pytest.fixture(scope="module")
def upsampler() -> UpsamplerStage:
    """From 16 to 32 pixels."""
    return tiny_bundle().upsamplers[0]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """What each call of the network is given."""
    seen = []
    forward = UNet.forward

    def spied(network, x, t, *args, **kwargs):
        seen.append({"x": x, "t": t, **kwargs})
        return forward(network, x, t, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", spied)
    return seen


def rebuilt(upsampler: UpsamplerStage, **changes) -> UpsamplerStage:
    return replace(upsampler, network=UNet(replace(upsampler.network.config, **changes)).eval())


def test_pictures_get_larger(upsampler, images) -> None:
    found = upsample(upsampler, images, seed=0, options=QUICK)
    assert found.shape == (3, 3, 32, 32)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.01


@pytest.mark.parametrize(
    ("options", "pixels"),
    [
        (QUICK, 2 * 32 * 32),
        (replace(QUICK, sampler="ddpm", noise_level=0.3), 10**9),
        (replace(QUICK, eta=1.0), 32 * 32),
    ],
)
def test_picture_i_is_that_of_seed_plus_i(upsampler, images, options, pixels: int, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_PIXELS_AT_ONCE", pixels)
    together = upsample(upsampler, images, seed=7, options=options)
    for i in range(3):
        alone = upsample(upsampler, images[i : i + 1], seed=7 + i, options=options)
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)
    other = upsample(upsampler, images[:1], seed=8, options=options)
    assert (together[:1] - other).abs().max() > 1e-2


def test_large_batches_run_in_parts_and_count_on(upsampler, images, calls, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_PIXELS_AT_ONCE", 2 * 32 * 32)
    steps = []
    large = upsample(upsampler, images, seed=0, options=QUICK, callback=steps.append)
    assert [len(call["x"]) for call in calls] == [2, 2, 2, 1, 1, 1]
    assert [(step.index, step.total, len(step.x0)) for step in steps] == [(i, 6, 3) for i in range(6)]
    # The picture that waits is the small one, and those that are finished stay.
    torch.testing.assert_close(steps[0].x0[2:], F.interpolate(images[2:] * 2 - 1, (32, 32)))
    for step in steps[3:]:
        torch.testing.assert_close(step.x0[:2], large[:2] * 2 - 1)
    torch.testing.assert_close((steps[-1].x0[2:].clamp(-1, 1) + 1) / 2, large[2:], atol=1e-4, rtol=0)


def test_the_condition_is_the_resized_picture(upsampler, images, calls) -> None:
    upsample(upsampler, images, seed=0, options=QUICK)
    expected = F.interpolate(images * 2 - 1, (32, 32), mode="bicubic", antialias=True)
    for call in calls:
        torch.testing.assert_close(call["concat"], expected)
        assert call["noise_level"].tolist() == [0.0] * 3
    assert (expected - F.interpolate(images * 2 - 1, (32, 32), mode="nearest")).abs().max() > 0.1


def test_values_outside_the_range_are_clamped(upsampler, images, calls) -> None:
    upsample(upsampler, images * 3 - 1, seed=0, options=QUICK)
    expected = resize_condition((images * 3 - 1).clamp(0, 1) * 2 - 1, (32, 32))
    torch.testing.assert_close(calls[0]["concat"], expected)


def test_noise_on_the_condition_is_told_to_the_network(upsampler, images, calls) -> None:
    clean = upsample(upsampler, images, seed=0, options=QUICK)
    noisy = upsample(upsampler, images, seed=0, options=replace(QUICK, noise_level=0.5))
    assert calls[-1]["noise_level"].tolist() == [0.5] * 3
    assert torch.equal(calls[3]["concat"], calls[5]["concat"])  # the same noise in every step
    assert (calls[0]["concat"] - calls[3]["concat"]).abs().max() > 0.5
    assert (clean - noisy).abs().max() > 1e-2


def test_an_upsampler_knows_the_noise_level_it_was_made_for(upsampler, images, calls) -> None:
    made_for_noise = replace(upsampler, recipe=UpsamplerConditions(noise_level=0.5))
    expected = upsample(upsampler, images, seed=0, options=replace(QUICK, noise_level=0.5))
    assert torch.equal(upsample(made_for_noise, images, seed=0, options=QUICK), expected)
    upsample(made_for_noise, images, seed=0, options=replace(QUICK, noise_level=0.0))
    assert calls[-1]["noise_level"].tolist() == [0.0] * 3


def test_corruption_keeps_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    low, noise = (torch.randn(3, 3, 64, 64, generator=generator) for _ in range(2))
    found = corrupt(low, torch.tensor([0.0, 0.6, 1.0]), noise)
    assert torch.equal(found[0], low[0])
    assert torch.equal(found[2], noise[2])
    torch.testing.assert_close(found[1], 0.8 * low[1] + 0.6 * noise[1])
    assert (found[1].var() - 1).abs() < 0.05


@pytest.mark.parametrize("size", [(16, 24), (10, 16), (7, 5)])
def test_without_attention_any_size_runs_at_the_same_scale(upsampler, size: tuple[int, int]) -> None:
    found = upsample(upsampler, torch.rand(1, 3, *size), seed=0, options=QUICK)
    assert found.shape == (1, 3, 2 * size[0], 2 * size[1])


def test_fixed_timesteps_are_used(upsampler, images, calls) -> None:
    fixed = replace(upsampler, timesteps=(0, 166, 500, 999))
    upsample(fixed, images, seed=0, options=QUICK)
    assert [int(call["t"][0]) for call in calls] == [999, 500, 166, 0]


@pytest.mark.parametrize("packs", [True, False])
def test_weights_are_packed_unless_told_otherwise(upsampler, images, monkeypatch, packs: bool) -> None:
    packed = []
    monkeypatch.setattr(pipeline, "with_packed_weights", lambda net, layers: packed.append(net) or net)
    upsample(upsampler, images, seed=0, options=replace(QUICK, pack_weights=packs))
    assert packed == ([upsampler.network] if packs else [])


def test_an_interruption_ends_it(upsampler, images, calls) -> None:
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upsample(upsampler, images, seed=0, options=QUICK, callback=stop)
    assert len(calls) == 1


def test_half_precision_gives_nearly_the_same_picture(upsampler, images) -> None:
    half = tiny_bundle().upsamplers[0]
    half.network.bfloat16()
    found = upsample(half, images, seed=0, options=QUICK)
    expected = upsample(upsampler, images, seed=0, options=QUICK)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"sampler": "dpm"}, "sampler 'dpm' is not known; choose one of ddpm, ddim, dpmpp_2m"),
        ({"eta": -0.5}, "eta is -0.5; expected 0 to 1"),
        ({"noise_level": 1.5}, "noise_level is 1.5; expected 0 (none) to 1 (only noise)"),
    ],
)
def test_wrong_options_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        UpsampleOptions(**change)


def test_wrong_inputs_are_named(upsampler, images) -> None:
    with pytest.raises(ValueError, match=re.escape("image: found shape (3, 16, 16), expected [batch, 3")):
        upsample(upsampler, images[0], seed=0)
    deep = rebuilt(upsampler, channel_mult=(1, 1, 1), res_blocks=(1, 1, 1))
    with pytest.raises(
        ValueError, match="found 15×16 pixels; width and height must be multiples of 2 for this"
    ):
        upsample(deep, torch.rand(1, 3, 16, 15), seed=0)
    attended = rebuilt(upsampler, attention=(16,), head_dim=32)
    with pytest.raises(
        ValueError, match="found 24×16 pixels, but this upsampler has attention and works at 16×16"
    ):
        upsample(attended, torch.rand(1, 3, 16, 24), seed=0)
    with pytest.raises(
        ValueError, match=re.escape("noise_level is 0.5, but this upsampler was trained without noise")
    ):
        upsample(
            rebuilt(upsampler, noise_level=False), images, seed=0, options=replace(QUICK, noise_level=0.5)
        )
