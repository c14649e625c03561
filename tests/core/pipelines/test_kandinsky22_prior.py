"""Kandinsky 2.2's prior with negative captions and from embeddings, against diffusers'."""

from __future__ import annotations

import pytest
import torch
from diffusers import KandinskyV22PriorEmb2EmbPipeline
from torch import Tensor
from unclip.core.embeddings.arithmetic import blend
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.load import load_any_bundle
from unclip.core.networks.clip import zero_picture
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.prior import (
    NEGATIVE_SEED,
    PriorOptions,
    sample_diffusion_prior,
    sample_negative_embedding,
)

from ...helpers import karlo
from ...helpers.unet import difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
SEED, STEPS = 9, 5
CAPTIONS, NEGATIVES = ["a red cat", "two blue birds"], ["grey", "dull and flat"]


@pytest.fixture(scope="module")
def pipeline():
    return karlo.with_exact_tables(karlo.tiny_kandinsky_prior())


@pytest.fixture(scope="module")
def bundle(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kandinsky22") / "prior"
    return load_any_bundle(karlo.save_as_published(pipeline, folder))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def options(scale: float = 4.0, strength: float = 1.0) -> PriorOptions:
    return PriorOptions(STEPS, scale, candidates=1, strength=strength, pack_weights=False)


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_kandinsky22s_prior_leads_away_from_negative_captions_as_diffusers_does(
    bundle, pipeline, scale: float
) -> None:
    own = [SEED + row + NEGATIVE_SEED for row in range(2)]
    result = pipeline(
        CAPTIONS,
        negative_prompt=NEGATIVES,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        generator=generators(SEED, SEED + 1, *own),
    )
    text, negative = encode_text(bundle.clip, CAPTIONS), encode_text(bundle.clip, NEGATIVES)
    given = {"seed": SEED, "batch_size": 2, "options": options(scale)}
    found = sample_diffusion_prior(bundle.prior, text, negative_text=negative, **given)
    assert difference(found.vectors, result.image_embeds) < WITHIN
    opposite = sample_negative_embedding(bundle.prior, negative, **given)
    assert difference(opposite.vectors, result.negative_image_embeds) < WITHIN
    if scale != 1:
        plain = sample_diffusion_prior(bundle.prior, text, **given)
        assert difference(plain.vectors, result.image_embeds) > OUTSIDE
    same_noise = sample_diffusion_prior(bundle.prior, negative, **given | {"options": options(1.0)})
    assert difference(same_noise.vectors, result.negative_image_embeds) > OUTSIDE


def test_one_negative_caption_of_kandinsky22_serves_all(bundle) -> None:
    text, negative = encode_text(bundle.clip, CAPTIONS), encode_text(bundle.clip, NEGATIVES[:1])
    both = encode_text(bundle.clip, NEGATIVES[:1] * 2)
    given = {"seed": SEED, "options": options()}
    first = sample_diffusion_prior(bundle.prior, text, negative_text=negative, **given)
    second = sample_diffusion_prior(bundle.prior, text, negative_text=both, **given)
    assert difference(first.vectors, second.vectors) < WITHIN


def standardised(pipeline, embeddings: Tensor) -> Tensor:
    return (embeddings - pipeline.prior.clip_mean) / pipeline.prior.clip_std


@pytest.mark.parametrize(("strength", "scale"), [(0.4, 4.0), (0.8, 1.0)])
def test_kandinsky22s_prior_begins_from_an_embedding(bundle, pipeline, strength: float, scale: float) -> None:
    """diffusers adds the noise to the embedding as it is, though the prior knows standardised ones only.

    Given a standardised one it does what is right; given a raw one it does something else: both are shown.
    """
    theirs = KandinskyV22PriorEmb2EmbPipeline(**pipeline.components)
    theirs.set_progress_bar_config(disable=True)
    start = random_tensor(3, 2, karlo.DIM)
    given = {
        "prompt": CAPTIONS,
        "strength": strength,
        "num_inference_steps": STEPS,
        "guidance_scale": scale,
    }
    right = theirs(
        image=standardised(pipeline, start), generator=generators(SEED, SEED + 1), **given
    ).image_embeds
    raw = theirs(image=start, generator=generators(SEED, SEED + 1), **given).image_embeds
    found = sample_diffusion_prior(
        bundle.prior,
        encode_text(bundle.clip, CAPTIONS),
        seed=SEED,
        options=options(scale, strength),
        image_embedding=Embedding(start, bundle.prior.space),
    )
    assert difference(found.vectors, right) < WITHIN
    assert difference(found.vectors, raw) > OUTSIDE


def test_no_strength_leaves_kandinsky22s_embedding_as_it_is(bundle) -> None:
    start = Embedding(random_tensor(3, 1, karlo.DIM), bundle.prior.space)
    text = encode_text(bundle.clip, CAPTIONS)
    found = sample_diffusion_prior(
        bundle.prior, text, seed=SEED, options=options(4.0, 0.0), image_embedding=start
    )
    assert torch.equal(found.vectors, start.vectors.expand(2, -1))


def test_kandinsky22_mixes_by_the_raw_sum(bundle, pipeline) -> None:
    """``interpolate`` of diffusers; its negative embedding is that of an all-zero picture."""
    image = random_tensor(4, 1, 3, 32, 32).sigmoid()
    mean, std = (
        torch.tensor(each)[:, None, None]
        for each in (bundle.clip.network.config.image_mean, bundle.clip.network.config.image_std)
    )
    result = pipeline.interpolate(
        [CAPTIONS[0], (image - mean) / std],
        [0.3, 0.7],
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(SEED),
    )
    text = encode_text(bundle.clip, CAPTIONS[:1])
    of_text = sample_diffusion_prior(bundle.prior, text, seed=SEED, options=options())
    of_image = encode_images(bundle.clip, image)
    found = blend([of_text, of_image], [0.3, 0.7], "sum")
    assert difference(found.vectors, result.image_embeds) < WITHIN
    assert difference(blend([of_text, of_image], [0.3, 0.7]).vectors, result.image_embeds) > OUTSIDE
    with pytest.raises(ValueError, match="mode: found 'middle'"):
        blend([of_text], [1.0], "middle")


def test_kandinsky22_leads_away_from_an_all_zero_picture_and_not_from_noise(bundle, pipeline) -> None:
    """``interpolate`` of diffusers' emb2emb pipeline gives noise as the negative, another each time."""
    image = random_tensor(4, 1, 3, 32, 32)
    emb2emb = KandinskyV22PriorEmb2EmbPipeline(**pipeline.components)
    noise = [emb2emb.interpolate([image], [1.0]).negative_image_embeds for _ in range(2)]
    zero = bundle.clip.network.encode_pixels(zero_picture(bundle.clip.network))
    expected = pipeline.interpolate([image], [1.0]).negative_image_embeds
    assert difference(zero, expected) < WITHIN
    assert difference(noise[0], noise[1]) > OUTSIDE and difference(zero, noise[0]) > OUTSIDE
