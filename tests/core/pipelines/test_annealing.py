"""Decoding with embeddings that are noise at first (CADS, 2310.17347)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.guidance import GUIDANCES
from unclip.core.diffusion.sampling import SAMPLERS
from unclip.core.diffusion.schedule import make_schedule
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.annealing import embedding_annealing
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.regions import Region

from ...helpers.bundle import DIM, tiny_bundle

QUICK = DecodeOptions(steps=5, guidance_scale=2.0)
SCHEDULE = make_schedule("cosine", 1000).respace(21)  # timesteps 0, 50, …, 999
SPACES = {
    "statistics": EmbeddingSpace("x", 64, mean=(0.5,) * 64, std=(2.0,) * 64),
    "raw": EmbeddingSpace("x", 64),
    "unit": EmbeddingSpace("x", 64, norm="unit"),
}


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


def made(space: EmbeddingSpace) -> Embedding:
    vectors = space.unstandardise(3 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
    return Embedding(space.in_convention(vectors), space)


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_noise_alone_first_then_more_and_more_of_the_embedding(space: EmbeddingSpace) -> None:
    whole, annealing = made(space), embedding_annealing(SCHEDULE, 0.4, space, 0, 2)
    assert annealing is not None
    steps = [annealing.of(whole, step).vectors for step in reversed(range(21))]
    own = space.standardise(whole.vectors)
    alike = [torch.cosine_similarity(space.standardise(each), own).mean().item() for each in steps]
    assert abs(alike[0]) < 0.3 and alike[0] < alike[4] < alike[7]
    # From 0.4 of the way on it is the embedding to the bit: timesteps 600, 550, …
    for step in range(13):
        assert torch.equal(annealing.of(whole, step).vectors, whole.vectors) and not annealing.changes(step)
    for each in steps:
        assert torch.allclose(each.norm(dim=-1), whole.vectors.norm(dim=-1), rtol=0.3)
    assert space.norm == "raw" or torch.allclose(steps[0].norm(dim=-1), torch.ones(2), atol=1e-6)


def test_a_row_has_the_noise_of_its_own_seed() -> None:
    whole = made(SPACES["raw"])
    both = embedding_annealing(SCHEDULE, 0.4, whole.space, 7, 2)
    second = embedding_annealing(SCHEDULE, 0.4, whole.space, 8, 1)
    one = replace(whole, vectors=whole.vectors[1:])
    for step in (20, 16):
        assert torch.equal(second.of(one, step).vectors[0], both.of(whole, step).vectors[1])
    assert embedding_annealing(SCHEDULE, 0.0, whole.space, 7, 2) is None
    # One embedding for several pictures: each has noise of its own.
    rows = both.of(one, 20).vectors
    assert rows.shape == (2, 64) and (rows[0] - rows[1]).abs().max() > 0.1


def test_an_embedding_without_statistics_is_annealed_by_those_of_the_decoder(bundle, embedding) -> None:
    """CLIP loaded from its own file, or ComfyUI's, gives none."""
    plain = replace(embedding, space=replace(embedding.space, mean=None, std=None))
    assert embedding.space.mean is not None
    assert torch.equal(picture(bundle, plain, annealing=0.4), picture(bundle, embedding, annealing=0.4))


def picture(bundle, embedding: Embedding, seed: int = 0, **options) -> Tensor:
    weaker = options.pop("weaker", None)
    return decode(bundle.decoder, embedding, seed=seed, options=replace(QUICK, **options), weaker=weaker)


def test_off_is_the_same_to_the_bit_and_on_another_picture(bundle, embedding) -> None:
    plain = picture(bundle, embedding)
    assert torch.equal(picture(bundle, embedding, annealing=0.0), plain)
    annealed = picture(bundle, embedding, annealing=0.4)
    assert (annealed - plain).abs().max() > 1e-3
    assert torch.equal(picture(bundle, embedding, annealing=0.4), annealed)
    second = replace(embedding, vectors=embedding.vectors[1:])
    assert torch.allclose(picture(bundle, second, seed=1, annealing=0.4)[0], annealed[1], atol=1e-5)


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_it_goes_with_every_guidance(bundle, embedding, guidance: str) -> None:
    given = {"guidance": guidance, "weaker": tiny_bundle(seed=3).decoder}
    given["guidance_scale"] = min(2.0, 0.6 * GUIDANCES[guidance].highest)
    found = picture(bundle, embedding, annealing=0.4, **given)
    assert torch.isfinite(found).all()
    assert (found - picture(bundle, embedding, **given)).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_goes_with_every_sampler(bundle, embedding, sampler: str) -> None:
    found = picture(bundle, embedding, annealing=0.6, sampler=sampler)
    assert torch.isfinite(found).all()
    assert (found - picture(bundle, embedding, sampler=sampler)).abs().max() > 1e-3


def test_it_costs_no_pass_of_the_network(bundle, embedding, monkeypatch) -> None:
    rows, forward = [], UNet.forward
    monkeypatch.setattr(
        UNet, "forward", lambda self, x, *args, **more: rows.append(len(x)) or forward(self, x, *args, **more)
    )
    picture(bundle, embedding)
    plain = list(rows)
    rows.clear()
    picture(bundle, embedding, annealing=0.4)
    assert rows == plain


def test_regions_are_annealed_too(bundle, embedding) -> None:
    one, other = (replace(embedding, vectors=embedding.vectors[i : i + 1]) for i in (0, 1))
    region = Region(torch.ones(1, 1, 8, 8), other, None)

    def painted(annealing: float) -> Tensor:
        options = replace(QUICK, annealing=annealing)
        return decode(bundle.decoder, one, seed=0, options=options, regions=[region])

    assert (painted(0.4) - painted(0.0)).abs().max() > 1e-3
    assert torch.allclose(painted(0.4), picture(bundle, other, annealing=0.4), atol=1e-4)


def test_a_decoder_of_captions_has_nothing_to_anneal(bundle) -> None:
    decoder = bundle.decoder
    conditioning = replace(decoder.network.config.conditioning, clip_dim=None, clip_tokens=0)
    network = UNet(replace(decoder.network.config, conditioning=conditioning))
    with pytest.raises(ValueError, match=r"annealing is 0\.4; this decoder paints captions"):
        decode(replace(decoder, network=network), None, seed=0, options=replace(QUICK, annealing=0.4))
    with pytest.raises(ValueError, match=r"annealing is 1\.5; expected 0 to 1"):
        DecodeOptions(annealing=1.5)
