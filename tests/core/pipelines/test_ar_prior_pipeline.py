"""Sampling the autoregressive prior: seeds, guidance, choice of codes, candidates, errors."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.samplers import SamplerStep
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures
from unclip.core.networks.ar_prior import AutoregressivePrior
from unclip.core.pipelines.ar_prior import (
    AutoregressiveOptions,
    choose,
    codec_of,
    sample_autoregressive_prior,
)
from unclip.core.pipelines.encode import text_as_image_embedding
from unclip.core.pipelines.prior import sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.ar_prior import COMPONENTS, CONFIG, small_ar_prior
from ...helpers.prior import DIM, LENGTH, SPACE, captions, small_prior

LENGTHS = (3, LENGTH, 6)
GUIDED = AutoregressiveOptions(guidance_scale=2.0, candidates=2)


@pytest.fixture(scope="module")
def prior() -> PriorStage:
    return small_ar_prior()


@pytest.fixture(scope="module")
def text() -> TextFeatures:
    return captions(*LENGTHS)


def sample(prior: PriorStage, text: TextFeatures, seed: int = 3, **options) -> Tensor:
    return sample_autoregressive_prior(
        prior, text, seed=seed, options=AutoregressiveOptions(**options)
    ).vectors


def caption(text: TextFeatures, index: int) -> TextFeatures:
    at = slice(index, index + 1)
    return replace(text, tokens=text.tokens[at], mask=text.mask[at], pooled=text.pooled[at])


# --- seeds and batches ---


def test_row_i_is_the_single_run_with_seed_plus_i(prior, text) -> None:
    together = sample_autoregressive_prior(prior, text, seed=20, options=GUIDED).vectors
    assert together.shape == (3, DIM) and together.dtype == torch.float32
    for i in range(3):
        alone = sample_autoregressive_prior(prior, caption(text, i), seed=20 + i, options=GUIDED).vectors
        assert (together[i] - alone[0]).abs().max() < 1e-5
        other = sample_autoregressive_prior(prior, caption(text, i), seed=21 + i, options=GUIDED).vectors
        assert (together[i] - other[0]).abs().max() > 1e-2


def test_images_of_one_caption(prior, text) -> None:
    one = caption(text, 0)
    together = sample_autoregressive_prior(prior, one, seed=3, batch_size=3, options=GUIDED).vectors
    for i in range(3):
        alone = sample_autoregressive_prior(prior, one, seed=3 + i, options=GUIDED).vectors
        assert (together[i] - alone[0]).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_the_global_generator_is_left_alone(prior, text) -> None:
    before = torch.get_rng_state()
    found = sample_autoregressive_prior(prior, text, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.space is SPACE


def test_embeddings_of_a_unit_space_have_length_1(text) -> None:
    space = replace(SPACE, norm="unit")
    prior = replace(small_ar_prior(), space=space)
    vectors = sample(prior, replace(text, space=space))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


# --- what is drawn ---


def test_the_match_token_is_drawn_from_the_upper_half(prior, text, monkeypatch) -> None:
    seen: list[Tensor] = []
    step = AutoregressivePrior.step

    def recorded(network, previous, cache):
        if cache.filled == 0:
            seen.append(previous)
        return step(network, previous, cache)

    monkeypatch.setattr(AutoregressivePrior, "step", recorded)
    sample_autoregressive_prior(
        prior, caption(text, 0), seed=0, batch_size=40, options=AutoregressiveOptions(candidates=1)
    )
    assert set(seen[0].tolist()) == {2, 3}


def test_codes_are_drawn_with_their_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.4, 0.3])
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    def shares(**options) -> list[float]:
        logits = probabilities.log().expand(1000, 4)
        found = choose(logits, draws, AutoregressiveOptions(**{"temperature": 1.0, **options}))
        return (torch.bincount(found, minlength=4) / 1000).tolist()

    assert shares() == pytest.approx([0.1, 0.2, 0.4, 0.3], abs=2e-3)
    assert shares(top_k=2) == pytest.approx([0, 0, 4 / 7, 3 / 7], abs=2e-3)
    assert shares(top_p=0.65) == pytest.approx([0, 0, 4 / 7, 3 / 7], abs=2e-3)
    assert shares(top_p=0.75) == pytest.approx([0, 2 / 9, 4 / 9, 3 / 9], abs=2e-3)
    assert shares(top_p=1e-9) == shares(top_k=1) == [0, 0, 1, 0]
    squared = probabilities.square() / probabilities.square().sum()
    assert shares(temperature=0.5) == pytest.approx(squared.tolist(), abs=2e-3)


def test_the_ends_of_the_unit_interval_are_codes_of_some_probability() -> None:
    logits = torch.tensor([[-1e4, 0.0, 1.0, -1e4]]).repeat(2, 1)
    draws = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, draws, AutoregressiveOptions()).tolist() == [1, 2]


def test_only_the_likeliest_codes_leave_nothing_to_the_seed(text) -> None:
    one_match = small_ar_prior(config=replace(CONFIG, match_buckets=2))  # whose upper half is one bucket
    first, other = (sample(one_match, text, seed=seed, top_k=1) for seed in (3, 77))
    assert torch.equal(first, other)
    assert not torch.equal(sample(one_match, text, seed=3), sample(one_match, text, seed=77))


def test_each_option_matters(prior, text) -> None:
    plain = sample(prior, text)
    for changed in ({"temperature": 2.0}, {"top_p": 0.3}, {"top_k": 1}, {"guidance_scale": 4.0}):
        assert (sample(prior, text, **changed) - plain).abs().max() > 1e-2, changed
    unpacked = sample(prior, text, pack_weights=False)
    assert (unpacked - plain).abs().max() < 1e-5


# --- guidance and candidates ---


def test_scale_1_needs_no_null_branch(prior, text, monkeypatch) -> None:
    rows: list[int] = []
    step = AutoregressivePrior.step

    def counted(network, previous, cache):
        rows.append(len(previous))
        return step(network, previous, cache)

    monkeypatch.setattr(AutoregressivePrior, "step", counted)
    plain = sample(prior, replace(text, null=None), guidance_scale=1.0, candidates=2)
    assert rows == [6] * COMPONENTS
    nearly = sample(prior, text, guidance_scale=1.0 + 1e-9, candidates=2)
    assert rows[COMPONENTS:] == [12] * COMPONENTS
    assert (plain - nearly).abs().max() < 1e-5


def test_guidance_takes_the_logits_away_from_the_null_ones(prior, text, monkeypatch) -> None:
    seen: list[Tensor] = []
    step = AutoregressivePrior.step

    def recorded(network, previous, cache):
        seen.append(step(network, previous, cache))
        return seen[-1]

    monkeypatch.setattr(AutoregressivePrior, "step", recorded)
    codes: list[Tensor] = []
    states = sample_autoregressive_prior(
        prior,
        text,
        seed=3,
        options=AutoregressiveOptions(guidance_scale=3.0, top_k=1, candidates=1),
        callback=lambda step: codes.append(step.x),
    )
    conditional, null = seen[0].chunk(2)
    expected = (null + 3 * (conditional - null)).argmax(dim=1)
    first = codec_of(prior).decode(expected[:, None]).vectors
    torch.testing.assert_close(SPACE.unstandardise(codes[0]), first)
    assert not torch.equal(expected, conditional.argmax(dim=1))
    assert len(states) == 3


def test_the_best_candidate_is_kept(prior, text) -> None:
    states: list[SamplerStep] = []
    options = AutoregressiveOptions(candidates=5)
    found = sample_autoregressive_prior(prior, text, seed=3, options=options, callback=states.append).vectors
    candidates = SPACE.unstandardise(states[-1].x).reshape(3, 5, DIM)
    scores = torch.einsum("bnd,bd->bn", candidates, text.pooled)
    torch.testing.assert_close(found, candidates[torch.arange(3), scores.argmax(dim=1)])
    assert len(set(scores.argmax(dim=1).tolist()) | {0}) > 1
    # Candidates do not depend on how many there are: the first of five is the only one.
    torch.testing.assert_close(sample(prior, text, candidates=1), candidates[:, 0])


# --- precision, callback, errors ---


def test_half_precision_runs(text) -> None:
    prior = small_ar_prior()
    exact = sample(prior, text, top_k=1)
    prior.network.bfloat16()
    found = sample(prior, text, top_k=1)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    assert torch.nn.functional.cosine_similarity(found, exact).mean() > 0.5


def test_a_network_that_overflows_is_named(text) -> None:
    """A code is found for any logits: unnoticed, all captions would lead to one embedding."""
    prior = small_ar_prior()
    prior.network.out.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="sampling gave NaN or infinite values: the network overflowed"):
        sample(prior, text)


def test_the_callback_sees_the_embedding_grow_and_may_interrupt(prior, text) -> None:
    seen: list[SamplerStep] = []
    sample_autoregressive_prior(prior, text, seed=3, options=GUIDED, callback=seen.append)
    assert [(step.index, step.total, tuple(step.x.shape)) for step in seen] == [
        (i, COMPONENTS, (6, DIM)) for i in range(COMPONENTS)
    ]
    codec = codec_of(prior)
    for step, after in itertools.pairwise(seen):
        known = slice(step.index + 1)
        before, now = (
            codec.pca.components @ (SPACE.unstandardise(s.x) - codec.pca.mean).T for s in (step, after)
        )
        torch.testing.assert_close(before[known], now[known], atol=1e-4, rtol=0)
        assert before[step.index + 1 :].abs().max() < 1e-4

    def stop(step: SamplerStep) -> None:
        if step.index == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_autoregressive_prior(prior, text, seed=3, callback=stop)


def test_errors_name_what_is_wrong(prior, text) -> None:
    elsewhere = replace(text, space=EmbeddingSpace("openai/ViT-L-14", DIM))
    with pytest.raises(ValueError, match=r"text is in the CLIP space 'openai/ViT-L-14'.*'test/prior'"):
        sample_autoregressive_prior(prior, elsewhere, seed=0)
    with pytest.raises(ValueError, match=r"guidance_scale: 2.0 needs the features of the empty caption"):
        sample_autoregressive_prior(prior, replace(text, null=None), seed=0, options=GUIDED)
    with pytest.raises(ValueError, match="text 3, batch_size 2"):
        sample_autoregressive_prior(prior, text, seed=0, batch_size=2)
    with pytest.raises(ValueError, match=r"'d\.st' is not an autoregressive prior: .*unCLIP Diffusion Prior"):
        sample_autoregressive_prior(replace(small_prior(), source="d.st"), text, seed=0)
    with pytest.raises(ValueError, match=r"'a\.st' is not a diffusion prior: .*unCLIP Autoregressive Prior"):
        sample_diffusion_prior(replace(prior, source="a.st"), text, seed=0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": 0.0}, "temperature: found 0.0, expected above 0"),
        ({"top_p": 0.0}, "top_p: found 0.0, expected above 0 to 1"),
        ({"top_p": 1.1}, "top_p: found 1.1, expected above 0 to 1"),
        ({"top_k": -1}, "top_k: found -1, expected 0"),
        ({"candidates": 0}, "candidates is 0; expected at least 1"),
    ],
)
def test_options_out_of_range(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveOptions(**option)


def test_z_t_as_if_it_were_z_i(text) -> None:
    assert torch.equal(text_as_image_embedding(text).vectors, text.pooled)
    assert text_as_image_embedding(text).space is SPACE
    copies = text_as_image_embedding(caption(text, 1), batch_size=4)
    assert torch.equal(copies.vectors, text.pooled[1:2].expand(4, -1))
    with pytest.raises(ValueError, match="text 3, batch_size 2"):
        text_as_image_embedding(text, batch_size=2)
