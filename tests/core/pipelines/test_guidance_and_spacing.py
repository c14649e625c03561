"""Decoding, inverting and priors by other guidance and spacing, through the pipelines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.guidance import GUIDANCES
from unclip.core.diffusion.spacing import SPACINGS
from unclip.core.diffusion.spec import DiffusionSpec, FoundSteps
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.candidates import closest_to_text
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.generate import GenerateOptions, generate
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.pipelines.invert import invert
from unclip.core.pipelines.manipulate import inpaint as inpaint_picture
from unclip.core.pipelines.manipulate import interpolate as interpolate_pictures
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.sweep import sweep_guidance
from unclip.core.pipelines.upsample import UpsampleOptions, upsample

from ...helpers.bundle import DECODED_SIZE, DIM, tiny_bundle

QUICK = DecodeOptions(steps=4, guidance_scale=2.0)


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


@pytest.fixture(scope="module")
def weaker():
    return tiny_bundle(seed=3).decoder


def apart(first: Tensor, second: Tensor) -> bool:
    return (first - second).abs().max().item() > 1e-3


def guided(options, name: str):
    """The options with another guidance, at a scale that it takes."""
    return replace(
        options, guidance=name, guidance_scale=min(options.guidance_scale, GUIDANCES[name].highest)
    )


def test_every_guidance_paints_something_else(bundle, embedding, weaker) -> None:
    pictures = [
        decode(bundle.decoder, embedding, seed=0, options=guided(QUICK, name), weaker=weaker)
        for name in GUIDANCES
    ]
    for index, picture in enumerate(pictures):
        assert torch.isfinite(picture).all()
        assert all(apart(picture, other) for other in pictures[:index]), list(GUIDANCES)[index]
    # Without guidance they are one, but for CFG++, which adds the noise of the null prediction again.
    alone = [
        decode(bundle.decoder, embedding, seed=0, options=replace(QUICK, guidance_scale=1.0, guidance=name))
        for name in GUIDANCES
    ]
    for name, picture in zip(GUIDANCES, alone, strict=True):
        assert torch.equal(picture, alone[0]) != (name == "cfg_pp")


def test_guidance_costs_what_it_needs(bundle, embedding, weaker, monkeypatch) -> None:
    """Rows that pass the network: twice as many as pictures wherever there is guidance, in the interval."""
    rows = []
    forward = UNet.forward
    monkeypatch.setattr(
        UNet, "forward", lambda self, x, *args, **more: rows.append(len(x)) or forward(self, x, *args, **more)
    )
    for name in GUIDANCES:
        for interval, expected in (((0.0, 1.0), 4 * 4), ((0.5, 1.0), 2 * 4 + 2 * 2)):
            rows.clear()
            options = replace(guided(QUICK, name), guidance_interval=interval)
            decode(bundle.decoder, embedding, seed=0, options=options, weaker=weaker)
            assert sum(rows) == expected, (name, interval)


def test_autoguidance_needs_a_weaker_decoder_of_its_kind(bundle, embedding, weaker) -> None:
    options = replace(QUICK, guidance="autoguidance")
    with pytest.raises(ValueError, match="weak_decoder: guidance 'autoguidance' leads away from a weaker"):
        decode(bundle.decoder, embedding, seed=0, options=options)
    other = replace(weaker, diffusion=replace(weaker.diffusion, schedule="linear"))
    with pytest.raises(ValueError, match=r"weak_decoder: .* same noise schedule"):
        decode(bundle.decoder, embedding, seed=0, options=options, weaker=other)
    # Away from itself is nowhere.
    own = decode(bundle.decoder, embedding, seed=0, options=options, weaker=bundle.decoder)
    plain = decode(bundle.decoder, embedding, seed=0, options=replace(QUICK, guidance_scale=1.0))
    assert torch.allclose(own, plain, atol=1e-4)
    swept = sweep_guidance(bundle.decoder, embedding, scales=[2.0], seed=0, options=options, weaker=weaker)
    assert torch.equal(swept[:, 0], decode(bundle.decoder, embedding, seed=0, options=options, weaker=weaker))


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="guidance 'best' is not known; choose one of cfg, cfg_pp"):
        DecodeOptions(guidance="best")
    with pytest.raises(ValueError, match="guidance 'pag' is not known; choose one of cfg, cfg_pp, apg"):
        PriorOptions(guidance="pag")
    with pytest.raises(ValueError, match="spacing 'odd' is not known; choose one of default, even"):
        DecodeOptions(spacing="odd")


def test_a_sweep_refuses_a_scale_before_it_paints(bundle, embedding) -> None:
    painted = []
    options = replace(QUICK, guidance="cfg_pp", guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"guidance_scale is 1\.5; guidance cfg_pp takes 0 to 1"):
        sweep_guidance(
            bundle.decoder, embedding, scales=[0.5, 1.5], seed=0, options=options, callback=painted.append
        )
    assert painted == []


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_picture_returns_from_its_noise_by_cfg_pp(bundle, embedding, spacing: str) -> None:
    picture = torch.rand(2, 3, DECODED_SIZE, DECODED_SIZE, generator=torch.Generator().manual_seed(2))
    way = {"steps": 8, "guidance_scale": 0.6, "spacing": spacing, "guidance": "cfg_pp"}
    noise = invert(bundle.decoder, picture, embedding, refinements=8, **way)
    back = decode(bundle.decoder, embedding, seed=0, noise=noise, options=DecodeOptions(**way))
    other = decode(
        bundle.decoder, embedding, seed=0, noise=noise, options=DecodeOptions(**{**way, "guidance": "cfg"})
    )
    error, plain = ((found - picture).square().mean().item() for found in (back, other))
    assert error < 0.2 * plain
    with pytest.raises(ValueError, match="guidance 'apg' cannot be inverted; choose cfg or cfg_pp"):
        invert(bundle.decoder, picture, embedding, **{**way, "guidance": "apg"})


def test_every_spacing_is_one_of_its_own(bundle, embedding) -> None:
    """Of decoder, prior and upsampler; default is the one of the network."""
    text = encode_text(bundle.clip, ["a", "b"])
    small = torch.rand(1, 3, DECODED_SIZE, DECODED_SIZE, generator=torch.Generator().manual_seed(2))
    made = {
        "decoder": lambda spacing: decode(
            bundle.decoder, embedding, seed=0, options=replace(QUICK, spacing=spacing)
        ),
        "prior": lambda spacing: (
            sample_diffusion_prior(
                bundle.prior, text, seed=0, options=PriorOptions(steps=4, spacing=spacing)
            ).vectors
        ),
        "upsampler": lambda spacing: upsample(
            bundle.upsamplers[0], small, seed=0, options=UpsampleOptions(steps=4, spacing=spacing)
        ),
    }
    for make in made.values():
        assert torch.equal(make("default"), make(DiffusionSpec().spacing))
        found = [make(spacing) for spacing in SPACINGS]
        for index, result in enumerate(found):
            assert not any(torch.equal(result, other) for other in found[:index])


def test_inpainting_is_guided_so_too(bundle, embedding) -> None:
    picture = torch.rand(1, 3, DECODED_SIZE, DECODED_SIZE, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, DECODED_SIZE, DECODED_SIZE)
    mask[..., DECODED_SIZE // 2 :] = 1
    found = []
    for name in ("cfg", "cfg_pp", "apg", "pag"):
        options = guided(InpaintOptions(steps=4, guidance_scale=2.0, resamples=1), name)
        found.append(inpaint(bundle.decoder, picture, mask, embedding, seed=0, options=options))
        left = slice(0, DECODED_SIZE // 2)
        assert torch.equal(found[-1][..., left], picture.expand(2, -1, -1, -1)[..., left])
        assert all(apart(found[-1], other) for other in found[:-1])


def test_negatives_that_guidance_does_not_use_are_told(bundle, embedding, weaker, caplog) -> None:
    text = encode_text(bundle.clip, ["a"])
    negatives = {"negative_embedding": embedding, "negative_text": text}
    for name in GUIDANCES:
        caplog.clear()
        given = {"options": guided(replace(QUICK, steps=1), name), "weaker": weaker}
        plain = decode(bundle.decoder, embedding, text, seed=0, **given)
        assert not caplog.messages
        negated = decode(bundle.decoder, embedding, text, seed=0, **given, **negatives)
        told = name in ("pag", "autoguidance")
        assert torch.equal(negated, plain) == told
        expected = [f"{each} has no effect: guidance {name} leads away from something" for each in negatives]
        assert [message.split(" else")[0] for message in caplog.messages] == (expected if told else [])


# --- priors ---


@pytest.mark.parametrize("name", ["cfg_pp", "apg"])
def test_a_prior_is_guided_so_too(bundle, name: str) -> None:
    text = encode_text(bundle.clip, ["a", "b"])
    options = PriorOptions(steps=4, candidates=1, guidance_scale=2.0)
    plain = sample_diffusion_prior(bundle.prior, text, seed=0, options=options)
    other = sample_diffusion_prior(bundle.prior, text, seed=0, options=guided(options, name))
    assert torch.isfinite(other.vectors).all() and apart(other.vectors, plain.vectors)
    if name == "cfg_pp":
        one = replace(options, guidance_scale=1.0, guidance=name)
        with pytest.raises(ValueError, match="needs the features of the empty caption"):
            sample_diffusion_prior(bundle.prior, replace(text, null=None), seed=0, options=one)


def test_several_candidates_are_kept_the_nearest_first(bundle) -> None:
    text = encode_text(bundle.clip, ["a", "b"])
    options = PriorOptions(steps=2, candidates=4)
    kept = sample_diffusion_prior(bundle.prior, text, seed=0, options=options, keep=3).vectors
    assert kept.shape == (6, DIM)
    best = sample_diffusion_prior(bundle.prior, text, seed=0, options=options).vectors
    assert torch.equal(kept[::3], best)
    scores = torch.einsum("b n d, b d -> b n", kept.reshape(2, 3, DIM), text.pooled)
    assert (scores.diff(dim=1) < 0).all()
    with pytest.raises(ValueError, match="keep: found 5, expected 1 to 4, the number of candidates"):
        sample_diffusion_prior(bundle.prior, text, seed=0, options=options, keep=5)


def test_of_equal_candidates_the_first_is_kept() -> None:
    candidates = torch.tensor([[[1.0, 0.0], [1.0, 5.0], [2.0, 0.0]]])
    found = closest_to_text(candidates, torch.tensor([[1.0, 0.0]]), 3)
    assert found.tolist() == [[[2.0, 0.0], [1.0, 0.0], [1.0, 5.0]]]


# --- timesteps that were found for the decoder ---


def test_optimal_visits_what_was_found_for_the_sampler(bundle, embedding, monkeypatch) -> None:
    rows = {"ddim": (4, 333, 999), "unipc": (50, 400, 999)}
    few = tuple(FoundSteps(sampler, row) for sampler, row in rows.items())
    decoder = replace(bundle.decoder, diffusion=replace(bundle.decoder.diffusion, few_steps=few))
    visited: list[int] = []
    forward = UNet.forward
    monkeypatch.setattr(
        UNet,
        "forward",
        lambda self, x, t, *args, **more: visited.append(int(t[0])) or forward(self, x, t, *args, **more),
    )
    for sampler, row in rows.items():
        visited.clear()
        decode(decoder, embedding, seed=0, options=DecodeOptions(3, sampler=sampler, spacing="optimal"))
        assert visited == sorted(row, reverse=True)
    picture = torch.rand(1, 3, DECODED_SIZE, DECODED_SIZE, generator=torch.Generator().manual_seed(2))
    visited.clear()
    invert(decoder, picture, embedding, steps=3, refinements=1, spacing="optimal")
    assert set(visited) == set(rows["ddim"])
    mask = torch.ones(1, 1, DECODED_SIZE, DECODED_SIZE)
    visited.clear()
    inpaint(
        decoder,
        picture,
        mask,
        embedding,
        seed=0,
        options=InpaintOptions(3, resamples=1, spacing="optimal"),
    )
    assert set(visited) == set(rows["ddim"])
    with pytest.raises(ValueError, match=r"for ddim with 4 steps; it has some for ddim with 3, unipc with 3"):
        decode(decoder, embedding, seed=0, options=DecodeOptions(4, spacing="optimal"))


def test_only_decoders_have_it() -> None:
    for options in (PriorOptions, UpsampleOptions):
        with pytest.raises(ValueError, match="spacing 'optimal' is not known; choose one of default, even"):
            options(spacing="optimal")


def test_timesteps_that_were_not_found_are_missed_before_a_prior_runs(bundle, monkeypatch) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("the prior ran")

    monkeypatch.setattr("unclip.core.pipelines.generate.sample_prior", ran)
    monkeypatch.setattr("unclip.core.pipelines.manipulate.sample_prior", ran)
    options = GenerateOptions(decode_options=DecodeOptions(4, spacing="optimal"))
    picture, mask = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    inpainted = InpaintOptions(4, spacing="optimal")
    for make in (
        lambda: generate(bundle, ["a"], seed=0, options=options),
        lambda: interpolate_pictures(bundle, "a", "b", options=options),
        lambda: inpaint_picture(bundle, picture, mask, "a", options=inpainted),
    ):
        with pytest.raises(ValueError, match="spacing: optimal needs timesteps that were found"):
            make()
