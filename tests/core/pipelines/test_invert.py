"""Inversion: the round trip to noise and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.denoiser import Prediction
from unclip.core.diffusion.inversion import invert_ddim
from unclip.core.diffusion.samplers import sample_ddim
from unclip.core.diffusion.schedule import Schedule, make_schedule
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.invert import InvertOptions, invert

from ...helpers.bundle import DECODED_SIZE, DIM, tiny_bundle
from ...helpers.gaussian import example_gaussian

GAUSSIAN = example_gaussian()
COSINE = make_schedule("cosine", 1000)


def data(rows: int = 20) -> Tensor:
    return GAUSSIAN.sample((rows,), torch.Generator().manual_seed(0)).float()


def round_trip_error(schedule: Schedule, prediction: str = "v", **options) -> float:
    denoiser, x = GAUSSIAN.denoiser(schedule, prediction), data()
    noise = invert_ddim(denoiser, x, schedule, **options)
    return (sample_ddim(denoiser, noise, schedule) - x).square().mean().sqrt().item()


# --- a Gaussian, whose flow is known ------------------------------------------------------------------


def test_the_noise_is_that_of_the_probability_flow() -> None:
    errors = []
    for steps in (100, 400):
        schedule = COSINE.respace(steps)
        noise = invert_ddim(GAUSSIAN.denoiser(schedule), data(), schedule)
        exact = GAUSSIAN.flow(data(), 1.0, COSINE.alphas_cumprod[-1].item())
        errors.append((noise - exact).abs().max().item())
    assert errors[1] < 0.05
    assert errors[0] > 3 * errors[1]  # of first order in the length of the steps


def test_the_error_falls_with_the_steps() -> None:
    errors = [round_trip_error(COSINE.respace(steps)) for steps in (10, 40, 160)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_error_falls_with_the_refinements(prediction: str) -> None:
    schedule = make_schedule("linear", 1000).respace(12)
    errors = [round_trip_error(schedule, prediction, refinements=r) for r in (0, 1, 4, 30)]
    assert errors[0] > 0.05
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]
    assert errors[3] < 2e-3


def test_refinements_invert_each_step_of_the_sampler() -> None:
    """Not only the whole way: the states on the way back are those on the way there."""
    schedule = COSINE.respace(8)
    denoiser = GAUSSIAN.denoiser(schedule, "v")
    there, back = [], []
    noise = invert_ddim(denoiser, data(), schedule, refinements=40, callback=there.append)
    sample_ddim(denoiser, noise, schedule, callback=back.append)
    for state, same in zip(there[:-1], back[-2::-1], strict=True):
        torch.testing.assert_close(state.x, same.x, atol=5e-3, rtol=0)
    assert (there[0].x - there[-1].x).abs().max() > 0.5


def test_refinements_find_what_repels_a_plain_correction() -> None:
    """By itself each of them would lead further away."""
    schedule = COSINE.respace(6)
    slopes = torch.tensor([-2.0, -0.5, 0.5]).repeat(2)  # −2 is like guidance gone mad
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))

    def steep(state: Tensor, step: int) -> Prediction:
        return Prediction(slopes * state)

    def error(refinements: int) -> float:
        noise = invert_ddim(steep, x, schedule, refinements=refinements)
        return ((sample_ddim(steep, noise, schedule) - x).norm() / x.norm()).item()

    assert error(0) > 0.1
    assert error(30) < 1e-2


def test_a_refinement_that_would_make_it_worse_is_dropped() -> None:
    schedule = COSINE.respace(6)

    def torn(x: Tensor, step: int) -> Prediction:
        return Prediction(-6 * torch.sin(40 * x))  # what one state says holds of none beside it

    plain = invert_ddim(torn, data(), schedule)
    refined = invert_ddim(torn, data(), schedule, refinements=30)
    assert torch.isfinite(refined).all()
    assert refined.abs().max() < 1e3 * plain.abs().max()

    def missed(noise: Tensor) -> float:
        return (sample_ddim(torn, noise, schedule) - data()).norm().item()

    assert missed(refined) < 1.5 * missed(plain)


def test_every_step_is_reported_and_every_call_counted() -> None:
    schedule, steps, calls = COSINE.respace(5), [], []
    inner = GAUSSIAN.denoiser(schedule)

    def denoiser(x: Tensor, step: int) -> Prediction:
        calls.append(step)
        return inner(x, step)

    invert_ddim(denoiser, data(), schedule, callback=steps.append)
    assert [(step.index, step.total) for step in steps] == [(i, 5) for i in range(5)]
    assert calls == [0, 1, 2, 3]
    calls.clear()
    invert_ddim(denoiser, data(), schedule, refinements=2)
    assert calls == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    with pytest.raises(ValueError, match="refinements is -1; expected 0 or more"):
        invert_ddim(denoiser, data(), schedule, refinements=-1)


# --- decoders -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(2, 3, DECODED_SIZE, DECODED_SIZE, generator=torch.Generator().manual_seed(1))


def reconstruct(bundle, embedding, pictures, text=None, *, steps=8, scale=1.0, refinements=0, **options):
    how = {"steps": steps, "guidance_scale": scale, "refinements": refinements, **options}
    noise = invert(bundle.decoder, pictures, embedding, text, **how)
    assert noise.shape == pictures.shape and noise.dtype == torch.float32
    how = DecodeOptions(steps=steps, guidance_scale=scale)
    found = decode(bundle.decoder, embedding, text, seed=9, noise=noise, options=how)
    return (found - pictures).square().mean().sqrt().item()


def test_a_decoder_paints_the_picture_again(bundle, embedding, pictures) -> None:
    text = encode_text(bundle.clip, ["a red day", "two love"])
    plain = reconstruct(bundle, embedding, pictures, text)
    refined = reconstruct(bundle, embedding, pictures, text, refinements=6)
    assert plain > 0.02
    assert refined < 0.1 * plain
    assert reconstruct(bundle, embedding, pictures, text, steps=32) < 0.5 * plain


def test_with_guidance_it_needs_refinements(bundle, embedding, pictures) -> None:
    plain = reconstruct(bundle, embedding, pictures, scale=1.5)
    assert reconstruct(bundle, embedding, pictures, scale=1.5, refinements=6) < 0.3 * plain


def test_the_defaults_of_both_ways_belong_together(bundle, embedding, pictures) -> None:
    noise = invert(bundle.decoder, pictures, embedding, steps=InvertOptions.steps)
    chosen = invert(bundle.decoder, pictures, embedding, **vars(InvertOptions()))
    torch.testing.assert_close(noise, chosen)
    back = decode(bundle.decoder, embedding, seed=0, noise=noise, options=DecodeOptions())
    assert (back - pictures).abs().mean() < 0.01


def test_the_embedding_must_be_the_same(bundle, embedding, pictures) -> None:
    noise = invert(bundle.decoder, pictures, embedding, steps=12, guidance_scale=1.0, refinements=5)
    options = DecodeOptions(steps=12, guidance_scale=1.0)
    swapped = Embedding(embedding.vectors.flip(0), embedding.space)
    found = decode(bundle.decoder, swapped, seed=0, noise=noise, options=options)
    assert (found - pictures).square().mean().sqrt() > 0.05


def test_pictures_of_any_size_and_one_for_many(bundle, embedding, pictures) -> None:
    large = torch.nn.functional.interpolate(pictures, scale_factor=3, mode="nearest")
    wide = torch.cat([large, large], dim=3)
    assert invert(bundle.decoder, wide, embedding, steps=2).shape == pictures.shape
    assert len(invert(bundle.decoder, pictures[:1], embedding, steps=2)) == 2
    one = replace(embedding, vectors=embedding.vectors[:1])
    for refinements, rounding in ((0, 2e-5), (4, 2e-4)):  # which corrections make larger
        how = {"steps": 3, "guidance_scale": 1.0, "refinements": refinements}
        both = invert(bundle.decoder, pictures, one, **how)
        alone = invert(bundle.decoder, pictures[1:], one, **how)
        torch.testing.assert_close(both[1:], alone, atol=rounding, rtol=0)
    crop, squash = (invert(bundle.decoder, wide, embedding, steps=2, fit=fit) for fit in ("crop", "squash"))
    assert (crop - squash).abs().max() > 1e-2


def test_what_cannot_be_inverted(bundle, embedding, pictures) -> None:
    with pytest.raises(ValueError, match="image: found shape"):
        invert(bundle.decoder, pictures[0], embedding, steps=2)
    with pytest.raises(ValueError, match="batch sizes do not match: image 3, embedding 2"):
        invert(bundle.decoder, torch.rand(3, 3, 8, 8), embedding, steps=2)
    with pytest.raises(ValueError, match=r"embedding is in the CLIP space 'unclip/tiny'.*'other'"):
        invert(tiny_bundle(space_id="other").decoder, pictures, embedding, steps=2)
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        invert(bundle.decoder, pictures, embedding, steps=0)
    with pytest.raises(ValueError, match="fit: 'stretch' is not known"):
        invert(bundle.decoder, torch.rand(1, 3, 8, 9), embedding, steps=1, fit="stretch")


def test_the_clamped_sampler_is_what_is_inverted(bundle, embedding, pictures) -> None:
    """White and black areas, where a clamp is at work in many steps."""
    extreme = (pictures > 0.5).float()
    plain = reconstruct(bundle, embedding, extreme, scale=1.5)
    assert reconstruct(bundle, embedding, extreme, scale=1.5, refinements=6) < 0.3 * plain
    free = replace(bundle.decoder, diffusion=replace(bundle.decoder.diffusion, clip_x0=None))
    options = {"steps": 8, "guidance_scale": 1.5, "refinements": 6}
    noise, other = (invert(stage, extreme, embedding, **options) for stage in (bundle.decoder, free))
    assert (noise - other).abs().max() > 0.05
