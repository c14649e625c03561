"""Prompts drawn from made-up pictograms, and pictures made of captions by a tiny bundle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unclip.core.data.captions import COLOURS, STYLE_WORDS
from unclip.core.evaluation.quality.prompts import draw_prompts, render_prompts
from unclip.core.pipelines.generate import (
    PRIORS,
    GenerateOptions,
    generate,
    generate_with_embeddings,
    picture_size,
)

from ...helpers.bundle import DECODED_SIZE, UPSAMPLED_SIZES
from ...helpers.evaluation import FAST, squares


@pytest.fixture(scope="module")
def pictograms():
    return squares()


# ---------------------------------------------------------------------------------------------------- prompts


def test_prompts_name_style_concept_and_a_plain_background(pictograms):
    prompts = draw_prompts(pictograms, 300, seed=1)
    assert len({prompt.caption for prompt in prompts}) == 300
    triples = {(p.pictogram.concept, p.pictogram.style, p.background.name) for p in prompts}
    assert len(triples) == 300
    for prompt in prompts:
        assert prompt.pictogram.concept in prompt.caption
        assert any(words in prompt.caption for words in STYLE_WORDS[prompt.pictogram.style])
        assert prompt.background.name and prompt.background.name in prompt.caption
        assert prompt.background.top == prompt.background.bottom
    # every pictogram before any again
    assert len({prompt.pictogram.key for prompt in prompts[:160]}) == 160
    assert len({prompt.background.name for prompt in prompts}) > len(COLOURS)


def test_prompts_depend_on_the_seed_and_fewer_are_the_first_of_more(pictograms):
    prompts = draw_prompts(pictograms, 200, seed=1)
    assert draw_prompts(pictograms, 50, seed=1) == prompts[:50]
    assert draw_prompts(pictograms, 50, seed=2) != prompts[:50]


def test_too_many_prompts_are_refused(pictograms):
    assert len(draw_prompts(pictograms[:3], 63, seed=0)) == 63  # 3 pictograms on 21 backgrounds
    with pytest.raises(ValueError, match="found 63 different prompts in 3 pictograms, expected 64"):
        draw_prompts(pictograms[:3], 64, seed=0)


def test_true_pictures_show_the_pictogram_on_its_background(pictograms):
    prompts = draw_prompts(pictograms, 20, seed=0)
    renders = render_prompts(prompts, 16)
    assert renders.shape == (20, 3, 16, 16)
    for prompt, render in zip(prompts, renders, strict=True):
        background = torch.tensor(prompt.background.top) / 255
        assert torch.allclose(render[:, 0, 0], background)
        assert ((render - background[:, None, None]).abs().amax(dim=0) > 0.01).sum() == 25


# ------------------------------------------------------------------------------------------------- generation

CAPTIONS = ["a red car", "a dog on a blue background", "", "a tree", "two birds"]


@pytest.mark.parametrize("prior", list(PRIORS))
def test_a_picture_depends_on_its_caption_and_seed_and_not_on_the_batch(bundle, prior):
    options = GenerateOptions(prior, FAST["prior"], FAST["decoder"], batch_size=2)
    pictures = generate(bundle, CAPTIONS, seed=5, options=options)
    assert pictures.shape == (5, 3, DECODED_SIZE, DECODED_SIZE)
    together = generate(bundle, CAPTIONS, seed=5, options=replace(options, batch_size=5))
    assert (pictures - together).abs().max() < 1e-4
    alone = generate(bundle, CAPTIONS[3:4], seed=8, options=options)
    assert (alone - pictures[3:4]).abs().max() < 1e-4
    assert (generate(bundle, CAPTIONS[3:4], seed=9, options=options) - alone).abs().max() > 1e-2
    assert (generate(bundle, ["a house"], seed=8, options=options) - alone).abs().max() > 1e-3


def test_priors_give_different_pictures(bundle):
    options = GenerateOptions("diffusion", FAST["prior"], FAST["decoder"])
    found = [generate(bundle, CAPTIONS, seed=0, options=replace(options, prior=name)) for name in PRIORS]
    assert (found[0] - found[1]).abs().max() > 1e-2
    guided = replace(options, prior_options=replace(FAST["prior"], guidance_scale=6.0))
    assert (generate(bundle, CAPTIONS, seed=0, options=guided) - found[0]).abs().max() > 1e-3


def test_upsamplers_follow_and_progress_runs_to_the_number_of_pictures(bundle):
    told = []
    options = GenerateOptions("diffusion", FAST["prior"], FAST["decoder"], upsamplers=2, batch_size=2)
    pictures = generate(bundle, CAPTIONS[:3], seed=0, options=options, on_progress=told.append)
    assert pictures.shape[-1] == UPSAMPLED_SIZES[1] == picture_size(bundle, 2)
    assert told == sorted(told) and told[-1] == 3
    assert told[:2] == [2 * 1 / 8, 2 * 2 / 8]  # half and all of the prior's steps, the first of four stages


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"decoder": None}, {}, "bundle 'tiny' has no decoder"),
        ({"clip": None}, {}, "bundle 'tiny' has no CLIP model"),
        ({"prior": None}, {}, "bundle 'tiny' has no diffusion prior"),
        ({}, {"upsamplers": 3}, "upsamplers is 3; expected 0 to 2, as many as bundle 'tiny' has"),
    ],
)
def test_a_bundle_that_lacks_a_stage_is_named(bundle, change, options, message):
    with pytest.raises(ValueError, match=message):
        generate(
            replace(bundle, **change),
            CAPTIONS,
            seed=0,
            options=GenerateOptions("diffusion", FAST["prior"], FAST["decoder"], **options),
        )


def test_known_embeddings_take_the_place_of_the_prior(bundle):
    options = GenerateOptions("diffusion", FAST["prior"], FAST["decoder"], batch_size=2)
    pictures, embeddings = generate_with_embeddings(bundle, CAPTIONS, seed=5, options=options)
    assert torch.equal(generate(bundle, CAPTIONS, seed=5, options=options), pictures)
    few = replace(embeddings, vectors=embeddings.vectors[:3])
    other = replace(options, prior_options=replace(FAST["prior"], guidance_scale=9.0))
    again, same = generate_with_embeddings(bundle, CAPTIONS[:3], seed=5, options=other, embeddings=few)
    assert (again - pictures[:3]).abs().max() < 1e-4 and torch.equal(same.vectors, few.vectors)
    assert (generate(bundle, CAPTIONS[:3], seed=5, options=other) - again).abs().max() > 1e-3
    with pytest.raises(ValueError, match="embeddings: found 3, expected one for each of 5 captions"):
        generate_with_embeddings(bundle, CAPTIONS, seed=5, options=options, embeddings=few)


def test_no_prior_is_needed_where_none_is_used(bundle):
    options = GenerateOptions("none", decode_options=FAST["decoder"])
    assert len(generate(replace(bundle, prior=None), CAPTIONS[:1], seed=0, options=options)) == 1
