"""ECLIPSE's prior, which predicts in one pass, against its transformer made of diffusers' blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.formats.bundling import bundle_of
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.native.checkpoints import load_bundle, load_stage, save_bundle, save_stage
from unclip.core.networks.one_pass_prior import OnePassPrior
from unclip.core.pipelines.candidates import closest_to_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.unet import difference, random_tensor, randomised

DIM, LENGTH, HEADS = 24, 9, 4
WITHIN, OUTSIDE = 1e-5, 1e-3
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def theirs() -> PriorTransformer:
    """The transformer of eclipse-inference: three tokens behind the caption, none of them the timestep."""
    network = PriorTransformer(
        num_attention_heads=HEADS,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=DIM,
        num_embeddings=LENGTH,
        additional_embeddings=3,
    )
    del network.time_embedding
    return randomised(network)


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eclipse")
    theirs.save_pretrained(folder)
    return folder / FILE


@pytest.fixture(scope="module")
def prior(file) -> PriorStage:
    return load_any_stage(file, expect="prior")


@pytest.fixture(scope="module")
def text(prior) -> TextFeatures:
    mask = torch.arange(LENGTH) < torch.tensor([5, 9, 2])[:, None]
    return TextFeatures(random_tensor(1, 3, LENGTH, DIM), mask, random_tensor(2, 3, DIM), prior.space)


@torch.no_grad()
def reference(theirs: PriorTransformer, noise: Tensor, text: TextFeatures) -> Tensor:
    tokens = torch.cat(
        [
            theirs.encoder_hidden_states_proj(text.tokens),
            theirs.embedding_proj(text.pooled)[:, None],
            theirs.proj_in(noise)[:, None],
            theirs.prd_embedding.expand(len(noise), -1, -1),
        ],
        dim=1,
    )
    padding = F.pad((1 - text.mask.float()) * -10000.0, (0, 3))
    mask = (padding[:, None] + theirs.causal_attention_mask).repeat_interleave(HEADS, dim=0)
    tokens = tokens + theirs.positional_embedding
    for block in theirs.transformer_blocks:
        tokens = block(tokens, attention_mask=mask)
    return theirs.proj_to_clip_embeddings(theirs.norm_out(tokens)[:, -1])


def test_the_network_predicts_what_theirs_predicts(theirs, prior, text) -> None:
    noise = random_tensor(3, 3, DIM)
    expected = reference(theirs, noise, text)
    assert isinstance(prior.network, OnePassPrior)
    assert 0.3 < expected.std() < 10
    found = prior.network(noise, text.tokens, text.pooled, text.mask)
    assert difference(found, expected) < WITHIN
    everything = torch.ones_like(text.mask)
    assert difference(prior.network(noise, text.tokens, text.pooled, everything), expected) > OUTSIDE
    assert difference(prior.network(noise + 0.1, text.tokens, text.pooled, text.mask), expected) > OUTSIDE


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_sampling_is_one_pass_from_the_noise_of_the_seed(theirs, prior, text, sampler: str) -> None:
    expected = reference(theirs, draw_noise(image_generators(5, 3), (DIM,)), text)
    options = PriorOptions(steps=25, guidance_scale=4.0, candidates=1, sampler=sampler)
    steps = []
    found = sample_diffusion_prior(prior, text, seed=5, options=options, callback=steps.append)
    assert difference(found.vectors, expected) < WITHIN
    assert len(steps) == 1
    assert found.space == prior.space
    other = sample_diffusion_prior(prior, text, seed=6, options=options)
    assert difference(other.vectors, expected) > OUTSIDE


def test_of_several_candidates_the_closest_is_kept(theirs, prior, text) -> None:
    generators = image_generators(5, 3)
    noise = [draw_noise(generators, (DIM,)) for _ in range(3)]
    candidates = torch.stack([reference(theirs, each, text) for each in noise], dim=1)
    found = sample_diffusion_prior(prior, text, seed=5, options=PriorOptions(candidates=3))
    assert difference(found.vectors, closest_to_text(candidates, text.pooled)[:, 0]) < WITHIN


def test_one_pass_begins_from_no_embedding(prior, text) -> None:
    start = Embedding(random_tensor(3, 3, DIM), prior.space)

    def sampled(strength: float = 1.0, **given) -> Embedding:
        options = PriorOptions(candidates=2, strength=strength)
        return sample_diffusion_prior(prior, text, seed=5, options=options, **given)

    assert torch.equal(sampled(0.0, image_embedding=start).vectors, start.vectors)
    assert torch.equal(sampled(1.0, image_embedding=start).vectors, sampled().vectors)
    for strength in (0.05, 0.5, 0.99):
        with pytest.raises(ValueError, match=r"^image_embedding: this prior imagines in one pass and cannot"):
            sampled(strength, image_embedding=start)


def test_it_is_kept_in_our_format(prior, tmp_path) -> None:
    path = save_stage(prior, tmp_path / "p.safetensors")
    found = load_stage(path, expect="prior")
    assert found.network.config == prior.network.config
    assert found.diffusion == prior.diffusion
    save_bundle(bundle_of("eclipse", [prior]), tmp_path / "bundle")
    assert isinstance(load_bundle(tmp_path / "bundle").prior.network, OnePassPrior)


def test_without_its_config_it_says_what_is_missing(file, tmp_path) -> None:
    path = tmp_path / FILE
    path.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=re.escape(f"{path}: needs the config.json") + ".*attention heads"):
        load_any_stage(path)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": HEADS}))
    assert load_any_stage(path).network.config.heads == HEADS


def test_a_file_that_is_not_whole_is_named(file, tmp_path) -> None:
    tensors = load_file(file)
    tensors.pop("norm_out.bias")
    save_file(tensors, tmp_path / FILE)
    (tmp_path / "config.json").write_bytes(file.with_name("config.json").read_bytes())
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / FILE}: lacks norm_out.bias")):
        load_any_stage(tmp_path / FILE)


def test_shapes_that_do_not_fit_are_named(prior, text) -> None:
    with pytest.raises(ValueError, match=r"for 3 captions expected noise \[3, 24\], found \[2, 24\]"):
        prior.network(torch.zeros(2, DIM), text.tokens, text.pooled, text.mask)
    with pytest.raises(ValueError, match="found 2 timesteps, expected one"):
        prior.network.prefill(text.tokens, text.pooled, text.mask, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="use the CLIP model that belongs to this prior"):
        prior.network(torch.zeros(3, DIM), torch.zeros(3, LENGTH, 5), text.pooled, text.mask)
