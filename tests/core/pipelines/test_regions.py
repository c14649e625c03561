"""Pictures of several embeddings, each with its own part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unclip.core.diffusion.denoiser import Prediction
from unclip.core.diffusion.regional import RegionalDenoiser
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.regions import Region, region_weights
from unclip.core.pipelines.repeats import repeat_regions

from ...helpers.bundle import DECODED_SIZE, DIM
from .test_decode import Spy

QUICK = DecodeOptions(steps=3, guidance_scale=2.0)
WHOLE = torch.ones(1, 1, 8, 8)


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(3, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


def row(embedding: Embedding, *indices: int) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[list(indices)])


def left(size: int = DECODED_SIZE) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


# --- weights ---


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], [1.0]),
        ([0.0], [1.0, 0.0]),
        ([0.25], [0.75, 0.25]),
        ([1.0, 1.0], [0.0, 0.5, 0.5]),
        ([1.0, 0.5], [0.0, 2 / 3, 1 / 3]),
        ([0.5, 0.25], [0.25, 0.5, 0.25]),
    ],
)
def test_overlapping_masks_share_and_the_rest_is_the_picture_s(embedding, values, expected) -> None:
    found = region_weights([Region(WHOLE * value, embedding) for value in values], (4, 4))
    assert [weight.shape for weight in found] == [(1, 1, 4, 4)] * len(expected)
    for weight, value in zip(found, expected, strict=True):
        torch.testing.assert_close(weight, torch.full((1, 1, 4, 4), value))


def test_masks_of_any_size_are_brought_to_the_grid(embedding) -> None:
    whole, one, two = region_weights([Region(left(64), embedding), Region(1 - left(10), embedding)], (8, 8))
    torch.testing.assert_close(one, left(8), atol=0.13, rtol=0)  # soft at the edge
    torch.testing.assert_close(whole + one + two, torch.ones(1, 1, 8, 8))
    assert one[..., :3].min() == 1
    assert one[..., 5:].max() == 0


@pytest.mark.parametrize("side", [65, 100, 300, 513])
def test_masks_that_cover_everything_leave_nothing_at_any_size(embedding, side: int) -> None:
    soft = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    for mask in (left(side), soft):
        whole, one, two = region_weights([Region(mask, embedding), Region(1 - mask, embedding)], (64, 64))
        assert whole.count_nonzero() == 0
        torch.testing.assert_close(one + two, torch.ones_like(whole))
    (whole, part) = region_weights([Region(torch.full((1, 1, side, side), 0.999), embedding)], (64, 64))
    torch.testing.assert_close(whole, torch.full_like(whole, 0.001), atol=1e-6, rtol=0)
    torch.testing.assert_close(whole + part, torch.ones_like(whole))


def test_strength_multiplies_the_mask(embedding) -> None:
    strong, weak = (region_weights([Region(left(), embedding, strength=s)], (16, 16))[1] for s in (1, 0.25))
    torch.testing.assert_close(weak, strong / 4)


# --- the denoiser ---


def constant(x0: float, log_variance: float | None):
    def denoiser(x: torch.Tensor, step: int) -> Prediction:
        filled = None if log_variance is None else torch.full_like(x, log_variance)
        return Prediction(torch.full_like(x, x0), filled)

    return denoiser


def test_x0_and_log_variance_are_weighted_means() -> None:
    mask = left(4)
    denoiser = RegionalDenoiser([constant(1, -2), constant(3, -6)], [mask * 0.5, 1 - mask * 0.5])
    found = denoiser(torch.zeros(2, 3, 4, 4), 0)
    assert found.x0[..., :2].unique().tolist() == [2.0]
    assert found.x0[..., 2:].unique().tolist() == [3.0]
    assert found.log_variance[..., :2].unique().tolist() == [-4.0]
    assert found.log_variance[..., 2:].unique().tolist() == [-6.0]
    assert RegionalDenoiser([constant(1, None)], [mask])(torch.zeros(1, 3, 4, 4), 0).log_variance is None


def test_as_many_weights_as_denoisers_are_demanded() -> None:
    with pytest.raises(ValueError, match="1 denoisers and 0 weights"):
        RegionalDenoiser([constant(1, None)], [])
    with pytest.raises(ValueError, match="at least one"):
        RegionalDenoiser([], [])


# --- decode ---


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_region_of_the_whole_picture_is_its_embedding(bundle, embedding, sampler: str) -> None:
    options = replace(QUICK, sampler=sampler)
    text = encode_text(bundle.clip, ["a red day"])
    region = Region(WHOLE, row(embedding, 1), text)
    found = decode(bundle.decoder, row(embedding, 0), seed=3, regions=[region], options=options)
    assert torch.equal(found, decode(bundle.decoder, row(embedding, 1), text, seed=3, options=options))


def test_a_region_of_nothing_changes_nothing_and_costs_nothing(bundle, embedding, monkeypatch) -> None:
    plain = decode(bundle.decoder, row(embedding, 0), seed=3, options=QUICK)
    spy = Spy(monkeypatch)
    for nothing in (
        Region(torch.zeros_like(WHOLE), row(embedding, 1)),
        Region(WHOLE, row(embedding, 1), strength=0),
    ):
        found = decode(bundle.decoder, row(embedding, 0), seed=3, regions=[nothing], options=QUICK)
        assert torch.equal(found, plain)
    assert len(spy.calls) == 2 * QUICK.steps


def test_the_embedding_of_the_whole_is_not_asked_for_where_regions_cover_it(bundle, embedding) -> None:
    regions = [Region(left(), row(embedding, 0)), Region(1 - left(), row(embedding, 1))]
    covered = decode(bundle.decoder, None, seed=3, regions=regions, options=QUICK)
    soft = torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(1))
    resized = [Region(soft, row(embedding, 0)), Region(1 - soft, row(embedding, 1))]
    assert len(decode(bundle.decoder, None, seed=3, regions=resized, options=QUICK)) == 1
    assert torch.equal(
        covered, decode(bundle.decoder, row(embedding, 0), seed=3, regions=regions[1:], options=QUICK)
    )
    with pytest.raises(ValueError, match=r"^embedding: this decoder paints image embeddings"):
        decode(bundle.decoder, None, seed=3, regions=regions[1:], options=QUICK)


def test_one_step_takes_each_half_from_its_own_embedding(bundle, embedding) -> None:
    options = replace(QUICK, steps=1)
    one, two = (decode(bundle.decoder, row(embedding, i), seed=3, options=options) for i in (0, 1))
    region = Region(left(), row(embedding, 1))
    found = decode(bundle.decoder, row(embedding, 0), seed=3, regions=[region], options=options)
    half = DECODED_SIZE // 2
    torch.testing.assert_close(found[..., :half], two[..., :half])
    torch.testing.assert_close(found[..., half:], one[..., half:])
    assert (one - two).abs().max() > 1e-2


def test_picture_i_is_that_of_seed_plus_i(bundle, embedding) -> None:
    masks = torch.cat([left(), 1 - left(), left() * 0.5])
    texts = encode_text(bundle.clip, ["a red day", "two love", ""])
    together = decode(
        bundle.decoder,
        row(embedding, 0),
        seed=7,
        regions=[Region(masks, embedding, texts), Region(left() * 0.5, row(embedding, 2))],
        options=QUICK,
    )
    assert len(together) == 3
    for i in range(3):
        regions = [
            Region(masks[i : i + 1], row(embedding, i), texts.rows(i, i + 1)),
            Region(left() * 0.5, row(embedding, 2)),
        ]
        alone = decode(bundle.decoder, row(embedding, 0), seed=7 + i, regions=regions, options=QUICK)
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)


def test_rows_of_regions_are_repeated(embedding) -> None:
    masks = torch.stack([torch.full((1, 2, 2), float(i)) for i in range(2)])
    (found,) = repeat_regions((Region(masks, row(embedding, 0, 1), strength=0.5),), 6)
    assert found.mask[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(found.embedding.vectors[2], embedding.vectors[0])
    assert torch.equal(found.embedding.vectors[3], embedding.vectors[1])
    assert found.strength == 0.5


def test_what_does_not_fit_is_said_with_the_region(bundle, embedding) -> None:
    other = Embedding(embedding.vectors, replace(embedding.space, id="other"))
    with pytest.raises(ValueError, match=r"^regions: in number 2, embedding .*other"):
        regions = [Region(left(), row(embedding, 1)), Region(left(), row(other, 1))]
        decode(bundle.decoder, row(embedding, 0), seed=0, regions=regions, options=QUICK)
    with pytest.raises(ValueError, match=r"regions \(mask 1\) 2, regions \(embedding 1\) 3"):
        regions = [Region(left().repeat(2, 1, 1, 1), embedding)]
        decode(bundle.decoder, row(embedding, 0), seed=0, regions=regions, options=QUICK)
    with pytest.raises(ValueError, match=r"^mask: found shape \(8, 8\)"):
        Region(torch.ones(8, 8), embedding)
    with pytest.raises(ValueError, match=r"^strength is 1\.5"):
        Region(WHOLE, embedding, strength=1.5)
    with pytest.raises(ValueError, match="nothing is given"):
        Region(WHOLE)
