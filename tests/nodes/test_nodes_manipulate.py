"""The nodes around embeddings, starting noise and inpainting, on a tiny bundle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unclip.core.embeddings.arithmetic import blend, embedding_diff, interpolate, slerp, text_diff
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.noise import StartingNoise, draw_starting_noise, interpolate_noise

from ..helpers.bundle import DECODED_SIZE, DIM, tiny_bundle
from ..helpers.nodes import run

QUICK = DecodeOptions(steps=3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def tiny():
    return tiny_bundle(upsamplers=0)


@pytest.fixture(scope="module")
def embedding(tiny) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), tiny.clip.space)


def row(embedding: Embedding, index: int) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[index : index + 1])


def picture(seed: int, *shape: int):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- noise ----------------------------------------------------------------------------------------------


def test_noise_of_a_seed_is_the_one_that_decoding_draws(tiny, embedding) -> None:
    (noise,) = run("UnCLIPNoise", decoder=tiny.decoder, seed=7, batch_size=2)
    assert noise.values.shape == (2, 3, DECODED_SIZE, DECODED_SIZE)
    given = {"decoder": tiny.decoder, "embedding": embedding, "steps": 3}
    (with_noise,) = run("UnCLIPDecode", **given, seed=0, noise=noise)
    assert torch.equal(with_noise, run("UnCLIPDecode", **given, seed=7)[0])
    assert not torch.allclose(with_noise, run("UnCLIPDecode", **given, seed=0)[0], atol=1e-3)


def test_noises_are_interpolated_over_all_pixels(tiny) -> None:
    first, second = (draw_starting_noise(tiny.decoder, seed=seed) for seed in (0, 1))
    (found,) = run("UnCLIPNoiseInterpolate", first=first, second=second, frames=5)
    assert len(found) == 5
    assert torch.equal(found.values[0], first.values[0]) and torch.equal(found.values[4], second.values[0])
    expected = slerp(first.values.flatten(), second.values.flatten(), 0.5).view_as(first.values[0])
    torch.testing.assert_close(found.values[2], expected)
    assert found.values[2].std() == pytest.approx(1, abs=0.05)
    assert ((first.values + second.values) / 2).std() < 0.8  # a straight line loses its strength
    eased = run("UnCLIPNoiseInterpolate", first=first, second=second, frames=5, ease="ease-in")[0]
    assert not torch.equal(eased.values[2], found.values[2])


def test_what_noise_refuses(tiny, embedding) -> None:
    noise = draw_starting_noise(tiny.decoder, seed=0)
    larger = StartingNoise(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="second: the noise is for 32×32 pixels, the first one for 16×16"):
        interpolate_noise(noise, larger, 3)
    with pytest.raises(ValueError, match="frames is 1; expected at least 2"):
        interpolate_noise(noise, noise, 1)
    with pytest.raises(
        ValueError, match=r"noise: found shape \(1, 3, 32, 32\), expected \[batch, 3, 16, 16\]"
    ):
        run("UnCLIPDecode", decoder=tiny.decoder, embedding=embedding, noise=larger)
    with pytest.raises(ValueError, match=r"noise: found shape \(3, 8\)"):
        StartingNoise(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="decoder: nothing arrived"):
        run("UnCLIPNoise", decoder=None)


def test_inverting_and_decoding_gives_the_picture_back(tiny, embedding) -> None:
    image = picture(0, 2, DECODED_SIZE, DECODED_SIZE, 3)
    given = {"decoder": tiny.decoder, "embedding": embedding, "steps": 8, "guidance_scale": 1.0}
    (noise,) = run("UnCLIPInvert", image=image, refinements=6, **given)
    (found,) = run("UnCLIPDecode", noise=noise, **given)
    assert (found - image).square().mean().sqrt() < 0.01
    # Variations: eta leads away from it, and each seed elsewhere.
    away = [
        run("UnCLIPDecode", noise=noise, eta=eta, seed=seed, **given)[0]
        for eta, seed in ((0.5, 0), (1.0, 0), (1.0, 1))
    ]
    distances = [(one - image).square().mean() for one in away]
    assert distances[1] > distances[0] > 1e-3
    assert (away[1] - away[2]).abs().max() > 1e-2


def test_invert_takes_grey_and_transparent_pictures_of_any_size(tiny, embedding) -> None:
    for image in (picture(0, 1, 20, 30, 4), picture(0, 1, 20, 30, 1)):
        (noise,) = run("UnCLIPInvert", decoder=tiny.decoder, embedding=embedding, image=image, steps=2)
        assert noise.values.shape == (2, 3, DECODED_SIZE, DECODED_SIZE)


# --- negative conditions --------------------------------------------------------------------------------


def test_negative_conditions_take_the_place_of_the_null_branch(tiny, embedding) -> None:
    text = encode_text(tiny.clip, ["a red day"])
    negative = row(embedding, 1)

    def paint(options=QUICK, **more):
        return decode(tiny.decoder, row(embedding, 0), text, seed=0, options=options, **more)

    plain = paint()
    assert torch.equal(paint(negative_embedding=None, negative_text=None), plain)
    changed = [
        paint(negative_embedding=negative),
        paint(negative_text=encode_text(tiny.clip, ["two love"])),
        paint(negative_embedding=negative, negative_text=encode_text(tiny.clip, ["two love"])),
    ]
    for index, one in enumerate(changed):
        assert all((one - other).abs().max() > 1e-3 for other in [plain, *changed[:index]])
    # x0 = negative + s·(positive − negative): away from oneself there is nothing to guide.
    same = paint(negative_embedding=row(embedding, 0), negative_text=text)
    unguided = paint(replace(QUICK, guidance_scale=1.0))
    torch.testing.assert_close(same, unguided, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        paint(replace(QUICK, guidance_scale=1.0), negative_embedding=negative), unguided
    )


def test_negative_conditions_are_checked(tiny, embedding) -> None:
    other = tiny_bundle(upsamplers=0, space_id="somebody/else")
    stranger = Embedding(embedding.vectors, other.clip.space)
    given = {"decoder": tiny.decoder, "embedding": row(embedding, 0), "steps": 2, "guidance_scale": 2.0}
    with pytest.raises(ValueError, match="negative_embedding is in the CLIP space 'somebody/else'"):
        run("UnCLIPDecode", **given, negative_embedding=stranger)
    with pytest.raises(ValueError, match="negative_text is in the CLIP space 'somebody/else'"):
        run("UnCLIPDecode", **given, negative_text=encode_text(other.clip, ["a"]))
    with pytest.raises(ValueError, match="embedding 2, negative_embedding 3"):
        three = replace(embedding, vectors=torch.zeros(3, DIM))
        run("UnCLIPDecode", **{**given, "embedding": embedding}, negative_embedding=three)


# --- embeddings -----------------------------------------------------------------------------------------


def test_the_embedding_nodes_do_their_arithmetic(tiny, embedding) -> None:
    first, second = row(embedding, 0), row(embedding, 1)
    (found,) = run("UnCLIPInterpolate", first=first, second=second, frames=4, ease="smooth")
    torch.testing.assert_close(found.vectors, interpolate(first, second, 4, "smooth").vectors)

    target, baseline = (encode_text(tiny.clip, [caption]) for caption in ("a red day", "two love"))
    change = {"embedding": first, "target_text": target, "theta_max": 0.3, "frames": 3}
    (found,) = run("UnCLIPTextDiff", **change, baseline_text=baseline)
    torch.testing.assert_close(found.vectors, text_diff(first, target, baseline, 0.3, 3).vectors)
    assert not torch.allclose(run("UnCLIPTextDiff", **change)[0].vectors, found.vectors)
    third = replace(first, vectors=first.vectors.flip(1))
    imagined = {"target_embedding": second, "baseline_embedding": third}
    (found,) = run("UnCLIPTextDiff", **change, baseline_text=baseline, **imagined)
    expected = embedding_diff(first, second, third, 0.3, 3)
    torch.testing.assert_close(found.vectors, expected.vectors)
    with pytest.raises(ValueError, match="baseline_embedding: it is given without target_embedding"):
        run("UnCLIPTextDiff", **change, baseline_embedding=second)

    weights = {"weight_1": 1.0, "weight_2": 3.0, "weight_3": 2.0, "weight_4": -0.5}
    (found,) = run("UnCLIPBlend", embedding_1=first, embedding_3=second, embedding_4=embedding, **weights)
    expected = blend([first, second, embedding], [1.0, 2.0, -0.5])
    torch.testing.assert_close(found.vectors, expected.vectors)
    (alone,) = run("UnCLIPBlend", embedding_1=first)
    torch.testing.assert_close(alone.vectors, first.vectors)


def test_batches_are_joined(embedding) -> None:
    first, second = row(embedding, 0), row(embedding, 1)
    (found,) = run("UnCLIPBatchEmbeddings", embedding_1=second, embedding_3=embedding, embedding_4=first)
    assert torch.equal(found.vectors, embedding.vectors[[1, 0, 1, 0]]) and found.space == embedding.space
    (alone,) = run("UnCLIPBatchEmbeddings", embedding_1=embedding)
    assert torch.equal(alone.vectors, embedding.vectors)


# --- inpainting -----------------------------------------------------------------------------------------


def test_an_edit_goes_back_into_the_original(tiny, embedding) -> None:
    image = picture(0, 1, 40, 24, 3)
    (mask,) = run("UnCLIPRegionMask", image=image, shape="ellipse", x=0.3, width=0.4)
    assert mask.shape == (1, 40, 24) and 0 < mask.mean() < 0.3
    given = {"decoder": tiny.decoder, "embedding": row(embedding, 0), "steps": 3}
    (small,) = run("UnCLIPInpaint", image=image, mask=mask, **given)
    assert small.shape == (1, DECODED_SIZE, DECODED_SIZE, 3)
    (whole,) = run("UnCLIPComposite", original=image, edited=small, mask=mask, feather=2)
    outside = (mask == 0)[..., None].expand_as(image)
    assert torch.equal(whole[outside], image[outside])
    assert (whole - image)[~outside].abs().mean() > 0.05


def test_inpaint_takes_pictures_and_masks_as_load_image_gives_them(tiny, embedding) -> None:
    given = {"decoder": tiny.decoder, "embedding": row(embedding, 0), "steps": 2, "resamples": 1}
    mask = torch.zeros(1, 64, 64)  # another size than the picture
    mask[:, :32] = 1
    image = picture(0, 2, DECODED_SIZE, DECODED_SIZE, 4)
    (found,) = run("UnCLIPInpaint", image=image, mask=mask, **given)
    assert found.shape == (2, DECODED_SIZE, DECODED_SIZE, 3)
    assert torch.equal(found[:, 10:], image[:, 10:, :, :3])
    (grey,) = run("UnCLIPInpaint", image=image[:1, ..., :1], mask=mask[0], **given)
    assert torch.equal(grey[:, 10:], image[:1, 10:, :, :1].expand(-1, -1, -1, 3))
    with pytest.raises(ValueError, match="mask: is empty, so there is nothing to repaint"):
        run("UnCLIPInpaint", image=image, mask=torch.zeros(1, 64, 64), **given)
    with pytest.raises(ValueError, match="decoder: nothing arrived"):
        run("UnCLIPInpaint", **{**given, "decoder": None}, image=image, mask=mask)
