"""Sampling of the diffusion prior: batches, seeds, candidates, guidance, what is kept, and errors."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from unclip.core.acceleration import kept_copies
from unclip.core.diffusion.samplers import SamplerStep
from unclip.core.diffusion.sampling import SAMPLERS
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures
from unclip.core.networks.diffusion_prior import DiffusionPrior
from unclip.core.pipelines.candidates import closest_to_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.prior import DIM, LENGTH, SPACE, captions, small_prior
from ...helpers.unet import difference

QUICK = PriorOptions(steps=4, guidance_scale=3.0, candidates=2)
LENGTHS = (3, LENGTH, 6)


@pytest.fixture(scope="module")
def prior() -> PriorStage:
    return small_prior()


@pytest.fixture(scope="module")
def text() -> TextFeatures:
    return captions(*LENGTHS)


def caption(text: TextFeatures, index: int) -> TextFeatures:
    at = slice(index, index + 1)
    return replace(text, tokens=text.tokens[at], mask=text.mask[at], pooled=text.pooled[at])


class Calls:
    """Counts prefills and the rows of each step."""

    def __init__(self, monkeypatch) -> None:
        self.prefills, self.rows = 0, []
        prefill, step = DiffusionPrior.prefill, DiffusionPrior.step

        def counted_prefill(network, *args, **kwargs):
            self.prefills += 1
            return prefill(network, *args, **kwargs)

        def counted_step(network, x, index, cache):
            self.rows.append(x[..., 0].numel())
            return step(network, x, index, cache)

        monkeypatch.setattr(DiffusionPrior, "prefill", counted_prefill)
        monkeypatch.setattr(DiffusionPrior, "step", counted_step)


# --- batches and seeds ---


def test_row_i_is_the_single_run_with_seed_plus_i(prior, text) -> None:
    together = sample_diffusion_prior(prior, text, seed=20, options=QUICK).vectors
    assert together.shape == (3, DIM)
    for i in range(3):
        alone = sample_diffusion_prior(prior, caption(text, i), seed=20 + i, options=QUICK).vectors
        assert difference(together[i], alone[0]) < 1e-5
        other = sample_diffusion_prior(prior, caption(text, i), seed=21 + i, options=QUICK).vectors
        assert difference(together[i], other[0]) > 1e-2


def test_images_of_one_caption(prior, text) -> None:
    one = caption(text, 0)
    together = sample_diffusion_prior(prior, one, seed=3, batch_size=4, options=QUICK).vectors
    for i in range(4):
        alone = sample_diffusion_prior(prior, one, seed=3 + i, options=QUICK).vectors
        assert difference(together[i], alone[0]) < 1e-5
    assert difference(together[0], together[1]) > 1e-2


def test_global_generator_is_left_alone(prior, text) -> None:
    before = torch.get_rng_state()
    sample_diffusion_prior(prior, text, seed=3, options=QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_embedding_says_its_space(prior, text) -> None:
    found = sample_diffusion_prior(prior, text, seed=3, options=QUICK)
    assert found.space is SPACE
    assert found.vectors.dtype == torch.float32


# --- candidates ---


def test_closest_to_text() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    candidates = torch.tensor([[[1.0, 5.0], [2.0, 0.0], [-3.0, 0.0]], [[0.0, 1.0], [9.0, -2.0], [0.0, -1.0]]])
    assert closest_to_text(candidates, text)[:, 0].tolist() == [[2.0, 0.0], [9.0, -2.0]]
    assert closest_to_text(candidates, text, cosine=True)[:, 0].tolist() == [[2.0, 0.0], [0.0, -1.0]]
    both = closest_to_text(candidates, text, 2)
    scores = torch.einsum("b n d, b d -> b n", both, text)
    assert both.shape[1] == 2 and (scores[:, 0] >= scores[:, 1]).all()


def test_the_best_candidate_is_kept(prior, text) -> None:
    states: list[Tensor] = []
    options = replace(QUICK, candidates=6)
    found = sample_diffusion_prior(
        prior, text, seed=3, options=options, callback=lambda step: states.append(step.x)
    ).vectors
    candidates = SPACE.unstandardise(states[-1]).reshape(3, 6, DIM)
    scores = torch.einsum("bnd,bd->bn", candidates, text.pooled)
    best = scores.argmax(dim=1)
    assert len(set(best.tolist()) | {0}) > 1  # not always the first
    assert torch.equal(found, candidates[torch.arange(3), best])
    assert scores.std(dim=1).min() > 1e-3


# --- guidance ---


def test_scale_1_runs_no_null_branch(prior, monkeypatch) -> None:
    calls = Calls(monkeypatch)
    text = captions(*LENGTHS, null=False)
    sample_diffusion_prior(prior, text, seed=3, options=replace(QUICK, guidance_scale=1.0))
    assert calls.prefills == 1
    assert calls.rows == [6] * 4  # 3 captions × 2 candidates


def test_guidance_interval_skips_the_null_branch(prior, text, monkeypatch) -> None:
    calls = Calls(monkeypatch)
    options = replace(QUICK, guidance_interval=(0.5, 1.0))  # timesteps 999, 666, 333, 0
    sample_diffusion_prior(prior, text, seed=3, options=options)
    assert calls.rows == [12, 12, 6, 6]


def test_x0_is_clamped_after_guidance(text) -> None:
    prior = small_prior(clip_x0=0.25)
    predictions: list[SamplerStep] = []
    sample_diffusion_prior(prior, text, seed=3, options=QUICK, callback=predictions.append)
    assert max(step.x0.abs().max().item() for step in predictions) == 0.25
    unbounded = small_prior(clip_x0=None)
    predictions.clear()
    sample_diffusion_prior(unbounded, text, seed=3, options=QUICK, callback=predictions.append)
    assert max(step.x0.abs().max().item() for step in predictions) > 0.3


# --- what is kept between calls ---


def test_the_null_prefix_is_computed_once(text, monkeypatch) -> None:
    prior = small_prior()
    calls = Calls(monkeypatch)
    first = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    assert calls.prefills == 2
    assert torch.equal(sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors, first)
    assert calls.prefills == 3  # the caption's only
    sample_diffusion_prior(prior, text, seed=3, options=replace(QUICK, steps=5))
    assert calls.prefills == 5  # other timesteps
    sample_diffusion_prior(prior, text, seed=3, options=QUICK)
    assert calls.prefills == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.load_state_dict(small_prior(seed=9).network.state_dict()),
        lambda network: network.load_state_dict(small_prior(seed=9).network.state_dict(), assign=True),
        lambda network: [
            p.data.copy_(q)
            for p, q in zip(network.parameters(), small_prior(seed=9).network.parameters(), strict=True)
        ],
    ],
    ids=["copied", "assigned", "through-data"],
)
def test_new_weights_are_seen(text, change) -> None:
    prior = small_prior()
    before = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    change(prior.network)
    after = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    assert torch.equal(
        after, sample_diffusion_prior(small_prior(seed=9), text, seed=3, options=QUICK).vectors
    )
    assert difference(after, before) > 1e-2


def test_a_new_null_caption_is_seen(prior, text) -> None:
    before = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    other = replace(text, null=captions(1, seed=40).null)
    after = sample_diffusion_prior(prior, other, seed=3, options=QUICK).vectors
    assert difference(after, before) > 1e-2


def test_inference_mode_and_back(text) -> None:
    with torch.inference_mode():
        prior = small_prior()
        first = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    assert torch.equal(sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors, first)


def test_a_network_that_is_gone_is_not_kept(text) -> None:
    prior = small_prior()
    sample_diffusion_prior(prior, text, seed=3, options=QUICK)
    gone = weakref.ref(prior.network)
    assert prior.network in kept_copies._KEPT
    del prior
    gc.collect()
    assert gone() is None


# --- samplers, precision, callbacks ---


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_every_sampler(prior, text, sampler) -> None:
    found = sample_diffusion_prior(prior, text, seed=3, options=replace(QUICK, sampler=sampler)).vectors
    assert torch.isfinite(found).all()
    if sampler != "ddpm":
        ddpm = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
        assert difference(found, ddpm) > 1e-3


def test_eta_reaches_ddim(prior, text) -> None:
    options = replace(QUICK, sampler="ddim")
    still = sample_diffusion_prior(prior, text, seed=3, options=options).vectors
    noisy = sample_diffusion_prior(prior, text, seed=3, options=replace(options, eta=1.0)).vectors
    assert difference(still, noisy) > 1e-3


def test_analytic_variance_reaches_ddpm(prior, text) -> None:
    plain = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    least = sample_diffusion_prior(prior, text, seed=3, options=QUICK, eps_power=torch.ones(1000)).vectors
    assert difference(least, plain) < 1e-5  # a statistic of 1 is the posterior variance
    more = sample_diffusion_prior(prior, text, seed=3, options=QUICK, eps_power=torch.full((4,), 0.5)).vectors
    assert difference(more, plain) > 1e-3
    with pytest.raises(ValueError, match="expected 4 or 1000 finite numbers"):
        sample_diffusion_prior(prior, text, seed=3, options=QUICK, eps_power=torch.ones(7))


ANALYTIC = replace(QUICK, variance="analytic")


def test_analytic_variance_is_measured_by_the_prior(prior, text) -> None:
    plain = sample_diffusion_prior(prior, text, seed=3, options=QUICK).vectors
    found = sample_diffusion_prior(prior, text, seed=3, options=ANALYTIC).vectors
    assert difference(found, plain) > 1e-3
    # A statistic that is given takes its place.
    least = torch.ones(1000)
    given = sample_diffusion_prior(prior, text, seed=3, options=ANALYTIC, eps_power=least).vectors
    assert difference(given, plain) < 1e-5


def test_analytic_variance_is_that_of_each_caption_alone(prior, text) -> None:
    assert len(text) > 1
    together = sample_diffusion_prior(prior, text, seed=3, batch_size=len(text), options=ANALYTIC).vectors
    for row in range(len(text)):
        one = caption(text, row)
        alone = sample_diffusion_prior(prior, one, seed=3 + row, options=ANALYTIC).vectors
        assert difference(together[row : row + 1], alone) < 1e-4


@pytest.mark.parametrize("sampler", [name for name, each in SAMPLERS.items() if "variance" not in each.takes])
def test_samplers_without_a_variance_measure_none(prior, text, sampler) -> None:
    options, calls = replace(QUICK, sampler=sampler), []
    plain = sample_diffusion_prior(prior, text, seed=3, options=options).vectors
    options = replace(options, variance="analytic")
    found = sample_diffusion_prior(prior, text, seed=3, options=options, callback=calls.append).vectors
    assert torch.equal(found, plain) and len(calls) == QUICK.steps


def test_progress_counts_the_measuring(prior, text) -> None:
    told: list[SamplerStep] = []
    sample_diffusion_prior(prior, text, seed=3, options=ANALYTIC, callback=told.append)
    total = 3 * QUICK.steps
    assert [(step.index, step.total) for step in told] == [(i, total) for i in range(total)]


def test_half_precision_is_close(text) -> None:
    exact = sample_diffusion_prior(small_prior(), text, seed=3, options=QUICK).vectors
    prior = small_prior()
    prior.network.bfloat16()
    found = sample_diffusion_prior(prior, text, seed=3, options=QUICK)
    assert found.vectors.dtype == torch.float32
    assert 1e-4 < difference(found.vectors, exact) < 0.3


def test_callback_sees_each_step_and_may_interrupt(prior, text) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def watch(step: SamplerStep) -> None:
        seen.append((step.index, step.total, tuple(step.x.shape)))
        if len(seen) > 4 and step.index == 1:
            raise InterruptedError

    sample_diffusion_prior(prior, text, seed=3, options=QUICK, callback=watch)
    assert seen == [(i, 4, (6, DIM)) for i in range(4)]
    with pytest.raises(InterruptedError):
        sample_diffusion_prior(prior, text, seed=3, options=QUICK, callback=watch)
    assert len(seen) == 6


# --- errors ---


def test_errors_name_what_is_wrong(prior, text) -> None:
    elsewhere = replace(text, space=EmbeddingSpace("openai/ViT-L-14", DIM))
    with pytest.raises(ValueError, match=r"text is in the CLIP space 'openai/ViT-L-14'.*'test/prior'"):
        sample_diffusion_prior(prior, elsewhere, seed=0)
    with pytest.raises(ValueError, match=r"guidance_scale: 1.5 needs the features of the empty caption"):
        sample_diffusion_prior(prior, replace(text, null=None), seed=0)
    with pytest.raises(ValueError, match="text 3, batch_size 2"):
        sample_diffusion_prior(prior, text, seed=0, batch_size=2)
    with pytest.raises(
        ValueError,
        match=r"'ar\.safetensors' is not a diffusion prior: connect the output prior of Load unCLIP Bundle",
    ):
        sample_diffusion_prior(PriorStage(nn.Linear(1, 1), SPACE, None, "ar.safetensors"), text, seed=0)
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        sample_diffusion_prior(prior, text, seed=0, options=replace(QUICK, steps=0))
    wide = replace(text, tokens=text.tokens.repeat(1, 1, 2))
    with pytest.raises(ValueError, match=re.escape(f"found [3, {LENGTH}, {2 * DIM}]")):
        sample_diffusion_prior(prior, wide, seed=0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"candidates": 0}, "candidates is 0; expected at least 1"),
        ({"variance": "learned"}, "variance 'learned' is not known; choose one of default, analytic"),
        ({"sampler": "dpm"}, "sampler 'dpm' is not known; choose one of ddpm, ddim, dpmpp_2m"),
        ({"eta": 1.5}, "eta is 1.5; expected 0 to 1"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0; expected 0 or more"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval is (0.5, 0.2); expected a range"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5; expected 0 to 1"),
    ],
)
def test_options_out_of_range(option, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PriorOptions(**option)
