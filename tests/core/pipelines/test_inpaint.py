"""Repainting a part: what is known stays to the bit, what is new fits it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unclip.core.diffusion.denoiser import Prediction
from unclip.core.diffusion.inpainting import KnownDenoiser, resampling_path, sample_repaint
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.schedule import make_schedule
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.unet import UNet
from unclip.core.pipelines import composite as composite_module
from unclip.core.pipelines.composite import composite, region_mask, shrink_mask, soften
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint, inpaint_steps

from ...helpers.bundle import DECODED_SIZE, DIM, randomised, tiny_bundle
from ...helpers.gaussian import Gaussian

QUICK = InpaintOptions(steps=4, resamples=2, jump_length=2)


def pictures(rows: int = 1, size: tuple[int, int] = (DECODED_SIZE, DECODED_SIZE), seed: int = 1) -> Tensor:
    return torch.rand(rows, 3, *size, generator=torch.Generator().manual_seed(seed))


def half(size: tuple[int, int] = (DECODED_SIZE, DECODED_SIZE)) -> Tensor:
    """The right half is to be repainted."""
    mask = torch.zeros(1, 1, *size)
    mask[..., size[1] // 2 :] = 1
    return mask


# --- the path -----------------------------------------------------------------------------------------


def test_the_path_without_resampling_is_the_plain_one() -> None:
    assert resampling_path(5, 3, 1) == [5, 4, 3, 2, 1, 0]


def test_each_stretch_is_walked_as_often_as_asked() -> None:
    assert resampling_path(5, 2, 2) == [5, 4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]
    path = resampling_path(50, 10, 4)
    down = [(a, b) for a, b in pairwise(path) if b < a]
    assert all(down.count((level + 1, level)) == 4 for level in range(1, 41))
    assert down.count((1, 0)) == 1 and path[-1] == 0
    assert all(abs(a - b) == 1 for a, b in pairwise(path))
    # A way that is no longer than a jump is walked again all the same, but for its clean end.
    for steps in (2, 4, 5):
        path = resampling_path(steps, 5, 3)
        down = [(a, b) for a, b in pairwise(path) if b < a]
        assert all(down.count((level + 1, level)) == 3 for level in range(1, steps))
        assert down.count((1, 0)) == 1
    assert resampling_path(1, 5, 3) == [1, 0]
    with pytest.raises(ValueError, match="jump_length is 0 and resamples is 2"):
        resampling_path(5, 0, 2)


# --- a correlated Gaussian, whose conditional law is known ---------------------------------------------


def test_repainting_samples_the_conditional_law() -> None:
    """Two correlated values, one known: the other one must follow it. More resampling, more closely."""
    turn = math.sqrt(0.5)
    gaussian = Gaussian(
        mean=torch.zeros(2, dtype=torch.float64),
        std=torch.tensor([1.0, 0.3], dtype=torch.float64),
        basis=torch.tensor([[turn, -turn], [turn, turn]], dtype=torch.float64),
    )
    covariance = gaussian.covariance
    slope = (covariance[0, 1] / covariance[0, 0]).item()
    schedule = make_schedule("cosine", 1000).respace(20)
    known = torch.zeros(1, 4000, 2)
    known[..., 0] = torch.linspace(-1.5, 1.5, 4000)
    repaint = torch.tensor([False, True])

    def found(resamples: int) -> float:
        generators = image_generators(0, 1)
        x = draw_noise(generators, (4000, 2))
        out = sample_repaint(
            gaussian.denoiser(schedule),
            x,
            known,
            repaint,
            schedule,
            generators=generators,
            resamples=resamples,
            jump_length=2,
        )
        assert torch.equal(out[..., 0], known[..., 0])
        a, b = out[0].double().T
        return ((a * b).sum() / (a * a).sum()).item()

    assert slope == pytest.approx(0.835, abs=1e-3)
    errors = [abs(found(resamples) - slope) for resamples in (1, 4, 16)]
    assert errors[0] > errors[1] + 0.02
    assert errors[2] < 0.08


def test_known_values_replace_the_prediction() -> None:
    denoiser = KnownDenoiser(
        lambda x, step: Prediction(x + 1, x), torch.zeros(1, 2), torch.tensor([True, False])
    )
    prediction = denoiser(torch.ones(1, 2), 0)
    assert prediction.x0.tolist() == [[2.0, 0.0]] and prediction.log_variance is not None


# --- compositing --------------------------------------------------------------------------------------


def test_known_pixels_are_kept_to_the_bit_at_every_size() -> None:
    original, edited = pictures(2, (37, 52)), pictures(1, (16, 16), seed=2)
    mask = region_mask((37, 52), "ellipse", (0.4, 0.6), (0.5, 0.3))
    for feather in (0, 3):
        found = composite(original, edited, mask, feather)
        outside = (mask == 0).expand_as(found)
        assert torch.equal(found[outside], original[outside])
        assert (found - original)[~outside].abs().mean() > 0.05


def test_inside_the_mask_is_the_edited_picture_and_between_a_mixture() -> None:
    original, edited = pictures(1, (4, 4)), pictures(1, (4, 4), seed=2)
    mask = torch.tensor([0.0, 0.25, 1.0, 1.0]).expand(1, 1, 4, 4)
    found = composite(original, edited, mask)
    torch.testing.assert_close(found[..., 2:], edited[..., 2:])
    torch.testing.assert_close(found[..., 1], 0.75 * original[..., 1] + 0.25 * edited[..., 1])


def test_a_soft_edge_lies_inside() -> None:
    mask = torch.zeros(1, 1, 9, 12)
    mask[..., 2:7, 4:] = 1  # touches the right border, which is no edge
    soft = soften(mask, 2)
    assert torch.equal(soft == 0, mask == 0)
    torch.testing.assert_close(soft[0, 0, 4], torch.tensor([0.0] * 4 + [1 / 3, 2 / 3] + [1.0] * 6))
    torch.testing.assert_close(soft[0, 0, 2:7, 11], torch.tensor([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]))
    assert torch.equal(soften(mask, 0), mask)
    with pytest.raises(ValueError, match="feather is -1; expected 0 pixels or more"):
        soften(mask, -1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (33, 41)])
@pytest.mark.parametrize("feather", [1, 3, 20])
def test_a_soft_edge_is_the_mean_of_erosions(size, feather) -> None:
    mask = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(3))
    mask[..., : size[1] // 3] = 0
    eroded = [mask]
    for _ in range(feather):
        eroded.append(-F.max_pool2d(-eroded[-1], 3, stride=1, padding=1))
    torch.testing.assert_close(soften(mask, feather), torch.stack(eroded).mean(dim=0))


def test_a_soft_edge_takes_as_long_as_what_is_masked_is_large(monkeypatch) -> None:
    mask, sizes = torch.zeros(1, 1, 900, 900), []
    mask[..., 500:510, 20:40] = 1
    plain = composite_module._eroded
    monkeypatch.setattr(
        composite_module, "_eroded", lambda part: (sizes.append(part.shape[2:]), plain(part))[1]
    )
    soften(mask, 256)
    assert sizes == [(12, 22)] * 5, "five times until nothing is left"


def test_a_small_mask_touches_every_pixel_that_it_covers() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 33, 10] = 1
    small = shrink_mask(mask, (16, 16))
    assert small.sum() == 1 and small[0, 0, 8, 2] == 1


def test_regions() -> None:
    box = region_mask((4, 8), "rectangle", (0.5, 0.5), (0.5, 0.5))[0, 0]
    expected = torch.zeros(4, 8)
    expected[1:3, 2:6] = 1
    assert torch.equal(box, expected)
    circle = region_mask((100, 200), "ellipse", (0.5, 0.5), (0.5, 1.0)).mean().item()
    assert circle == pytest.approx(math.pi / 8, rel=0.01)
    assert region_mask((10, 10), "ellipse", (0.0, 0.0), (1.0, 1.0))[0, 0, 0, 0] == 1
    with pytest.raises(
        ValueError, match=r"the rectangle of 0\.01 × 0\.01 at 0\.5, 0\.5 covers no pixel of a p"
    ):
        region_mask((8, 8), "rectangle", (0.5, 0.5), (0.01, 0.01))
    with pytest.raises(ValueError, match=r"the ellipse of 0 × 0 at 0\.5, 0\.5 covers no pixel of a picture"):
        region_mask((8, 8), "ellipse", (0.5, 0.5), (0.0, 0.0))
    with pytest.raises(ValueError, match="shape: found 'star', expected one of rectangle, ellipse"):
        region_mask((8, 8), "star", (0.5, 0.5), (0.5, 0.5))


# --- decoders -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


@pytest.fixture(scope="module")
def glide(bundle):
    """The tiny decoder as one that was trained to inpaint."""
    config = replace(bundle.decoder.network.config, concat_channels=4)
    network = randomised(UNet(config), torch.Generator().manual_seed(3))
    return replace(bundle.decoder, network=network)


def one(embedding: Embedding) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[:1])


@pytest.fixture(params=["ordinary", "glide"])
def decoder(request, bundle, glide):
    return bundle.decoder if request.param == "ordinary" else glide


def test_only_the_masked_part_changes(decoder, embedding) -> None:
    image, mask = pictures(), half()
    found = inpaint(decoder, image, mask, one(embedding), seed=0, options=QUICK)
    assert found.shape == image.shape and found.dtype == torch.float32
    outside = (mask == 0).expand_as(found)
    assert torch.equal(found[outside], image[outside])
    assert (found - image)[~outside].abs().mean() > 0.05
    soft = inpaint(decoder, image, mask, one(embedding), seed=0, options=replace(QUICK, feather=2))
    assert torch.equal(soft[outside], image[outside]) and not torch.equal(soft, found)


def test_the_known_part_is_seen(decoder, embedding) -> None:
    mask = half()
    first, second = (
        inpaint(decoder, pictures(seed=s), mask, one(embedding), seed=0, options=QUICK) for s in (1, 2)
    )
    inside = (mask == 1).expand_as(first)
    assert (first - second)[inside].abs().max() > 1e-3
    # What lies under the mask is not seen.
    image = pictures()
    hidden = torch.where(mask == 1, 0.5, image)
    a, b = (inpaint(decoder, given, mask, one(embedding), seed=0, options=QUICK) for given in (image, hidden))
    assert torch.equal(a, b)


def test_the_number_of_steps_is_known_before(decoder, embedding) -> None:
    steps = []
    inpaint(decoder, pictures(), half(), one(embedding), seed=0, options=QUICK, callback=steps.append)
    assert len(steps) == inpaint_steps(decoder, QUICK)
    assert {step.total for step in steps} == {len(steps)}


def test_picture_i_is_that_of_seed_plus_i(bundle, decoder, embedding) -> None:
    text = encode_text(bundle.clip, ["a red day", "two love"])
    images, masks = pictures(2), torch.cat([half(), half().flip(3)])
    together = inpaint(decoder, images, masks, embedding, text, seed=4, options=QUICK)
    for i in range(2):
        alone = inpaint(
            decoder,
            images[i : i + 1],
            masks[i : i + 1],
            replace(embedding, vectors=embedding.vectors[i : i + 1]),
            encode_text(bundle.clip, [["a red day", "two love"][i]]),
            seed=4 + i,
            options=QUICK,
        )
        torch.testing.assert_close(together[i : i + 1], alone, atol=5e-5, rtol=0)
    several = inpaint(decoder, images[:1], half(), one(embedding), seed=4, batch_size=3, options=QUICK)
    assert len(several) == 3 and (several[0] - several[1]).abs().max() > 1e-3


def test_every_option_matters(bundle, embedding) -> None:
    def paint(**changes):
        extra = {name: changes.pop(name) for name in ("negative_embedding",) if name in changes}
        options = replace(QUICK, **changes)
        return inpaint(bundle.decoder, pictures(), half(), one(embedding), seed=0, options=options, **extra)

    plain = paint()
    negative = replace(embedding, vectors=embedding.vectors[1:])
    for changed in (
        {"steps": 5},
        {"guidance_scale": 3.0},
        {"eta": 0.0},
        {"resamples": 1},
        {"jump_length": 1},
        {"negative_embedding": negative},
    ):
        assert (paint(**changed) - plain).abs().max() > 1e-3, changed


def test_larger_pictures_and_masks(decoder, embedding) -> None:
    image, mask = pictures(1, (40, 24)), half((40, 24))
    small = inpaint(decoder, image, mask, one(embedding), seed=0, options=QUICK)
    assert small.shape == (1, 3, DECODED_SIZE, DECODED_SIZE)
    whole = composite(image, small, mask, 2)
    assert torch.equal(whole[..., :12], image[..., :12])
    assert (whole - image)[..., 12:].abs().mean() > 0.05


def test_a_picture_with_an_empty_mask_comes_back(bundle, embedding) -> None:
    masks = torch.cat([half(), torch.zeros_like(half())])
    images = pictures(2)
    found = inpaint(bundle.decoder, images, masks, embedding, seed=0, options=QUICK)
    assert torch.equal(found[1], images[1]) and not torch.equal(found[0], images[0])
    with pytest.raises(ValueError, match="mask: is empty, so there is nothing to repaint; paint over what"):
        inpaint(bundle.decoder, images, torch.zeros_like(masks), embedding, seed=0, options=QUICK)


def test_steps_are_reported(bundle, glide, embedding) -> None:
    for stage, count in ((bundle.decoder, 6), (glide, 4)):
        steps = []
        inpaint(stage, pictures(), half(), one(embedding), seed=0, options=QUICK, callback=steps.append)
        assert [(step.index, step.total) for step in steps] == [(i, count) for i in range(count)]

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inpaint(bundle.decoder, pictures(), half(), one(embedding), seed=0, options=QUICK, callback=stop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"eta": 2.0}, "eta is 2.0; expected 0 to 1"),
        ({"resamples": 0}, "resamples is 0; expected at least 1"),
        ({"jump_length": 0}, "jump_length is 0; expected at least 1"),
        ({"feather": -1}, "feather is -1; expected 0 pixels or more"),
    ],
)
def test_wrong_options_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        InpaintOptions(**change)


def test_wrong_inputs_are_named(bundle, embedding) -> None:
    paint = inpaint
    with pytest.raises(ValueError, match=r"mask: found shape \(1, 1, 8, 8\), expected \[batch, 1, 16, 16\]"):
        paint(bundle.decoder, pictures(), half((8, 8)), embedding, seed=0)
    with pytest.raises(ValueError, match="batch sizes do not match: image 3, embedding 2"):
        paint(bundle.decoder, pictures(3), half(), embedding, seed=0)
    with pytest.raises(ValueError, match="image: found shape"):
        paint(bundle.decoder, pictures()[:, :1], half(), embedding, seed=0)
    with pytest.raises(ValueError, match=r"embedding is in the CLIP space 'unclip/tiny'.*'other'"):
        paint(tiny_bundle(space_id="other").decoder, pictures(), half(), embedding, seed=0)
    with pytest.raises(ValueError, match="edited: found shape"):
        composite(pictures(), pictures()[0], half())
