from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.stages import DecoderStage

from ...helpers.bundle import DECODED_SIZE, DIM, tiny_bundle

QUICK = DecodeOptions(steps=3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def decoder(bundle) -> DecoderStage:
    return bundle.decoder


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(3, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


def rows(embedding: Embedding, *indices: int) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[list(indices)])


class Spy:
    """Counts network calls and keeps what went in."""

    def __init__(self, monkeypatch) -> None:
        self.calls, self.conditions = [], []
        forward, condition = UNet.forward, UNet.condition

        def spied_forward(network, x, t, *args, **kwargs):
            self.calls.append((x, t))
            return forward(network, x, t, *args, **kwargs)

        def spied_condition(network, **kwargs):
            self.conditions.append(kwargs)
            return condition(network, **kwargs)

        monkeypatch.setattr(UNet, "forward", spied_forward)
        monkeypatch.setattr(UNet, "condition", spied_condition)


def test_pictures_are_pictures(decoder, embedding) -> None:
    found = decode(decoder, embedding, seed=0, options=QUICK)
    assert found.shape == (3, 3, DECODED_SIZE, DECODED_SIZE)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.01


@pytest.mark.parametrize(
    ("sampler", "with_text"), [("ddim", True), ("ddpm", True), ("ddpm", False), ("dpmpp_2m", False)]
)
def test_picture_i_is_that_of_seed_plus_i(bundle, embedding, sampler: str, with_text: bool) -> None:
    options = replace(QUICK, sampler=sampler, eta=0.5 if sampler == "ddim" else 0.0)
    text = encode_text(bundle.clip, ["a red day in the field", "two love", ""]) if with_text else None
    together = decode(bundle.decoder, embedding, text, seed=7, options=options)
    for i, caption in enumerate(["a red day in the field", "two love", ""]):
        own = encode_text(bundle.clip, [caption]) if with_text else None
        alone = decode(bundle.decoder, rows(embedding, i), own, seed=7 + i, options=options)
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)
        other = decode(bundle.decoder, rows(embedding, i), own, seed=8 + i, options=options)
        assert (together[i : i + 1] - other).abs().max() > 1e-2


def test_one_row_serves_the_whole_batch(bundle, decoder, embedding) -> None:
    one, text = rows(embedding, 0), encode_text(bundle.clip, ["two love"])
    found = decode(decoder, one, text, seed=1, batch_size=2, options=QUICK)
    expected = decode(decoder, rows(embedding, 0, 0), text, seed=1, options=QUICK)
    torch.testing.assert_close(found, expected)
    captions = encode_text(bundle.clip, ["two love", "a day"])
    assert len(decode(decoder, one, captions, seed=1, options=QUICK)) == 2
    noise = torch.randn(2, 3, DECODED_SIZE, DECODED_SIZE)
    assert len(decode(decoder, one, seed=1, noise=noise, options=QUICK)) == 2


def test_every_condition_matters(bundle, decoder, embedding) -> None:
    text = encode_text(bundle.clip, ["a red day"])
    options = replace(QUICK, guidance_scale=1.0)
    found = decode(decoder, rows(embedding, 0), text, seed=1, options=options)
    for changed in (
        decode(decoder, rows(embedding, 1), text, seed=1, options=options),
        decode(decoder, rows(embedding, 0), None, seed=1, options=options),
        decode(decoder, rows(embedding, 0), encode_text(bundle.clip, ["two love"]), seed=1, options=options),
        decode(decoder, rows(embedding, 0), text, seed=1, options=QUICK),
    ):
        assert (found - changed).abs().max() > 1e-3


def test_noise_replaces_that_of_the_seed(decoder, embedding) -> None:
    one = rows(embedding, 0)
    noise = draw_noise(image_generators(3, 1), (3, DECODED_SIZE, DECODED_SIZE))
    options = replace(QUICK, eta=1.0)
    found = decode(decoder, one, seed=3, noise=noise, options=options)
    torch.testing.assert_close(found, decode(decoder, one, seed=3, options=options))
    assert (found - decode(decoder, one, seed=4, noise=noise, options=options)).abs().max() > 1e-3
    deterministic = [decode(decoder, one, seed=seed, noise=noise, options=QUICK) for seed in (3, 4)]
    torch.testing.assert_close(*deterministic)


def test_scale_one_makes_no_null_branch(decoder, embedding, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    decode(decoder, embedding, seed=0, options=replace(QUICK, guidance_scale=1.0))
    assert [len(x) for x, _ in spy.calls] == [3, 3, 3]
    assert len(spy.conditions) == 1


def test_both_branches_share_a_call_and_conditions_are_computed_once(decoder, embedding, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    decode(decoder, embedding, seed=0, options=replace(QUICK, steps=5))
    assert [len(x) for x, _ in spy.calls] == [6] * 5
    assert len(spy.conditions) == 2
    assert "clip_embedding" not in spy.conditions[1]
    for x, t in spy.calls:
        assert torch.equal(x[:3], x[3:])
        assert len(set(t.tolist())) == 1
    assert [int(t[0]) for _, t in spy.calls] == sorted((int(t[0]) for _, t in spy.calls), reverse=True)


def test_outside_the_interval_there_is_no_null_branch(decoder, embedding, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    decode(decoder, embedding, seed=0, options=replace(QUICK, steps=5, guidance_interval=(0.2, 0.8)))
    assert [len(x) for x, _ in spy.calls] == [3, 6, 6, 6, 3]


def test_guidance_is_null_plus_scaled_difference(decoder, embedding, monkeypatch) -> None:
    """One ddim step returns x0 itself: null + s·(conditional − null), checked against the branches alone."""
    one = rows(embedding, 0)
    free = replace(decoder, diffusion=replace(decoder.diffusion, clip_x0=None))
    at = {
        scale: decode(free, one, seed=2, options=DecodeOptions(steps=1, guidance_scale=scale)) * 2 - 1
        for scale in (0.0, 1.0, 1.5)
    }
    inside = (torch.stack(list(at.values())).abs() < 0.999).all(0)  # the output is clamped to pictures
    expected = at[0.0] + 1.5 * (at[1.0] - at[0.0])
    assert inside.float().mean() > 0.1
    torch.testing.assert_close(at[1.5][inside], expected[inside], atol=1e-4, rtol=0)
    assert (at[1.5] - at[1.0])[inside].abs().max() > 1e-3


def test_embeddings_enter_as_the_decoder_was_trained(decoder, embedding, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    options = replace(QUICK, guidance_scale=1.0)
    decode(decoder, embedding, seed=0, options=options)
    torch.testing.assert_close(spy.conditions[-1]["clip_embedding"], (embedding.vectors - 0.1) / 0.5)
    decode(with_conditioning(decoder, standardised=False), embedding, seed=0, options=options)
    torch.testing.assert_close(spy.conditions[-1]["clip_embedding"], embedding.vectors)


def with_conditioning(decoder: DecoderStage, **changes) -> DecoderStage:
    """The same weights under another conditioning config."""
    old = decoder.network.config
    network = UNet(replace(old, conditioning=replace(old.conditioning, **changes)))
    network.load_state_dict(decoder.network.state_dict())
    return replace(decoder, network=network.eval().requires_grad_(False))


def test_null_text_is_what_the_config_says(bundle, decoder, embedding, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    text = encode_text(bundle.clip, ["a red day"])
    decode(decoder, embedding, text, seed=0, options=QUICK)
    assert "text_tokens" not in spy.conditions[-1]
    decode(with_conditioning(decoder, null_text="empty_caption"), embedding, text, seed=0, options=QUICK)
    null = spy.conditions[-1]
    assert "clip_embedding" not in null
    torch.testing.assert_close(null["text_tokens"], text.null.tokens[:, :2].expand(3, -1, -1))
    assert null["text_mask"].all()


def test_padding_is_left_out(bundle, decoder, embedding, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    text = encode_text(bundle.clip, ["a red day", "two love", ""])
    found = decode(decoder, embedding, text, seed=0, options=QUICK)
    assert spy.conditions[0]["text_tokens"].shape[1] == 5  # start, a, red, day, end
    monkeypatch.setattr("unclip.core.pipelines.conditioning.text_inputs", untrimmed)
    torch.testing.assert_close(
        decode(decoder, embedding, text, seed=0, options=QUICK), found, atol=2e-5, rtol=0
    )


def untrimmed(network, text, batch):
    if text is None:
        return {}
    return {"text_tokens": text.tokens, "text_mask": text.mask, "text_pooled": text.pooled}


def test_x0_is_limited_as_asked(decoder, embedding) -> None:
    seen = {}
    for name, stage, options in [
        ("clamped", decoder, QUICK),
        ("free", replace(decoder, diffusion=replace(decoder.diffusion, clip_x0=None)), QUICK),
        ("dynamic", decoder, replace(QUICK, dynamic_threshold=0.9)),
    ]:
        steps = []
        decode(stage, embedding, seed=0, options=replace(options, guidance_scale=8.0), callback=steps.append)
        seen[name] = torch.stack([step.x0 for step in steps])
    assert seen["free"].abs().max() > 1.5
    assert seen["clamped"].abs().max() == 1
    assert seen["dynamic"].abs().max() <= 1
    saturated = [(seen[name].abs() >= 1).float().mean() for name in ("dynamic", "clamped")]
    assert saturated[0] < saturated[1]


def test_a_callback_sees_every_step_and_can_interrupt(decoder, embedding) -> None:
    steps = []
    decode(decoder, embedding, seed=0, options=QUICK, callback=steps.append)
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    assert all(step.x0.shape == (3, 3, DECODED_SIZE, DECODED_SIZE) for step in steps)

    seen = []

    def stop(step):
        seen.append(step.index)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(decoder, embedding, seed=0, options=QUICK, callback=stop)
    assert seen == [0]


def test_half_precision_gives_nearly_the_same_picture(decoder, embedding) -> None:
    half = tiny_bundle().decoder
    half.network.bfloat16()
    options = replace(QUICK, guidance_scale=1.0)  # guidance multiplies the difference
    found, expected = (decode(stage, embedding, seed=0, options=options) for stage in (half, decoder))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    other = decode(decoder, embedding, seed=1, options=options)
    assert (found - expected).abs().mean() < 0.25 * (other - expected).abs().mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0; expected 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        (
            {"guidance_interval": (0.5, 0.2)},
            "guidance_interval is (0.5, 0.2); expected a range within 0 to 1",
        ),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0; expected 0 to 1"),
        ({"sampler": "dpm"}, "sampler 'dpm' is not known; choose one of ddpm, ddim, dpmpp_2m"),
        ({"eta": 1.5}, "eta is 1.5; expected 0 to 1"),
        ({"dynamic_threshold": 0.0}, "dynamic_threshold is 0.0; expected a quantile within 0 to 1"),
    ],
)
def test_wrong_options_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DecodeOptions(**change)


def test_wrong_inputs_are_named(bundle, decoder, embedding) -> None:
    with pytest.raises(
        ValueError, match=r"batch sizes do not match: embedding 3, batch_size 2\. Each must be 1"
    ):
        decode(decoder, embedding, seed=0, batch_size=2, options=QUICK)
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        decode(decoder, embedding, seed=0, batch_size=0, options=QUICK)
    with pytest.raises(
        ValueError, match=re.escape("noise: found shape (1, 4, 16, 16), expected [batch, 3, 16, 16]")
    ):
        decode(decoder, embedding, seed=0, noise=torch.randn(1, 4, 16, 16), options=QUICK)
    other = tiny_bundle(space_id="other")
    with pytest.raises(ValueError, match=r"embedding is in the CLIP space 'unclip/tiny'.*but 'other'"):
        decode(other.decoder, embedding, seed=0, options=QUICK)
    with pytest.raises(ValueError, match="text is in the CLIP space 'other'"):
        decode(decoder, embedding, encode_text(other.clip, ["a"]), seed=0, options=QUICK)
    with pytest.raises(ValueError, match="text: this decoder needs a caption; connect an encoded one"):
        decode(with_conditioning(decoder, null_text="empty_caption"), embedding, seed=0, options=QUICK)
    with pytest.raises(ValueError, match="takes no conditions, so it cannot decode an embedding"):
        decode(
            replace(decoder, network=UNet(replace(decoder.network.config, conditioning=None))),
            embedding,
            seed=0,
        )


def test_a_decoder_of_embeddings_needs_one(decoder) -> None:
    with pytest.raises(
        ValueError, match="embedding: this decoder paints image embeddings, and none is given"
    ):
        decode(decoder, None, seed=0, options=QUICK)
