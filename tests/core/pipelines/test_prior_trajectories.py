"""Whole trajectories of the diffusion prior: against full passes without caches, and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import UnCLIPScheduler
from torch import Tensor
from unclip.core.diffusion.denoiser import ClampedDenoiser, NetworkDenoiser
from unclip.core.diffusion.guidance import GuidedDenoiser
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.samplers import sample_ddpm
from unclip.core.diffusion.schedule import make_schedule
from unclip.core.embeddings.space import TextFeatures
from unclip.core.pipelines.candidates import closest_to_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.prior import DIM, LENGTH, captions, diffusers_prior, small_prior
from ...helpers.unet import difference


@pytest.fixture(scope="module")
def prior() -> PriorStage:
    return small_prior()


@pytest.fixture(scope="module")
def text() -> TextFeatures:
    return captions(3, LENGTH, 6)


@torch.no_grad()
def by_full_passes(
    prior: PriorStage, text: TextFeatures, seed: int, steps: int, scale: float, candidates: int
) -> Tensor:
    """The same trajectories without caches: all 15 tokens of every branch and candidate, in every step."""

    def repeated(features: Tensor) -> Tensor:
        return features.repeat_interleave(len(features) and candidates * len(text) // len(features), dim=0)

    def branch(features: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
        return repeated(features.tokens), repeated(features.pooled), repeated(features.mask)

    schedule = make_schedule("cosine", 1000).respace(steps)
    conditional = branch(text)
    both = tuple(torch.cat(pair) for pair in zip(conditional, branch(text.null), strict=True))

    def network(features):
        return lambda x, step: prior.network(x, schedule.timesteps[step].expand(len(x)), *features)

    spec = prior.diffusion
    guided = GuidedDenoiser(
        NetworkDenoiser(network(conditional), schedule, spec),
        NetworkDenoiser(network(both), schedule, spec),
        schedule,
        scale,
    )
    generators = [g for g in image_generators(seed, len(text)) for _ in range(candidates)]
    x = sample_ddpm(
        ClampedDenoiser(guided, spec.clip_x0),
        draw_noise(generators, (DIM,)),
        schedule,
        generators=generators,
    )
    found = prior.space.unstandardise(x).reshape(len(text), candidates, DIM)
    return closest_to_text(found, text.pooled)[:, 0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("candidates", [1, 3])
def test_equals_full_passes(prior, text, candidates, packed) -> None:
    options = PriorOptions(steps=8, guidance_scale=3.0, candidates=candidates, pack_weights=packed)
    found = sample_diffusion_prior(prior, text, seed=5, options=options).vectors
    expected = by_full_passes(prior, text, 5, 8, 3.0, candidates)
    assert difference(found, expected) < 1e-5
    assert difference(by_full_passes(prior, text, 5, 8, 3.01, candidates), expected) > 1e-4


@torch.no_grad()
def by_diffusers(prior: PriorStage, text: TextFeatures, seed: int, scale: float, limit: float) -> Tensor:
    """The loop of diffusers' UnCLIPPipeline, 25 steps, one generator for each image."""
    network = diffusers_prior(prior.network)
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=limit
    )
    # Its own float32 tables are off by a few 1e-4 at t = 0, where 1 − ᾱ is 4e-5.
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.set_timesteps(25)
    generators = image_generators(seed, len(text))
    null = text.null.expand(len(text))
    tokens = torch.cat([null.tokens, text.tokens])
    pooled = torch.cat([null.pooled, text.pooled])
    mask = torch.cat([null.mask, text.mask])
    x = draw_noise(generators, (DIM,))
    for t, previous in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        output = network(
            torch.cat([x, x]),
            timestep=t,
            proj_embedding=pooled,
            encoder_hidden_states=tokens,
            attention_mask=mask,
        )
        unconditional, conditional = output.predicted_image_embedding.chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        x = scheduler.step(guided, t, x, generator=generators, prev_timestep=previous).prev_sample
    return prior.space.unstandardise(x)


@pytest.mark.parametrize("limit", [0.5, 5.0])
def test_parity_with_diffusers(text, limit) -> None:
    prior = small_prior(clip_x0=limit)
    options = PriorOptions(steps=25, guidance_scale=4.0, candidates=1)
    found = sample_diffusion_prior(prior, text, seed=7, options=options).vectors
    assert difference(found, by_diffusers(prior, text, 7, 4.0, limit)) < 1e-4
    # another scale, another limit (0.5 and 0.6 both cut this prior's x0), other noise
    assert difference(found, by_diffusers(prior, text, 7, 4.01, limit)) > 1e-4
    assert difference(found, by_diffusers(prior, text, 8, 4.0, limit)) > 1e-2
    if limit == 0.5:
        assert difference(found, by_diffusers(prior, text, 7, 4.0, 0.6)) > 1e-2
