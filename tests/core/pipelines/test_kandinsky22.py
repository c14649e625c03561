"""Kandinsky 2.2's pipelines against diffusers': the same weights, noise and steps, in float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.schedule import schedule_of
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.layouts.kandinsky import DIFFUSION_22
from unclip.core.formats.load import load_any_stage
from unclip.core.pipelines.composite import resize
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.stages import DecoderStage
from unclip.nodes import sockets

from ...helpers import kandinsky_files as files
from ...helpers.karlo import DIM
from ...helpers.nodes import run
from ...helpers.unet import difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
SEED, STEPS = 11, 4
WIDTH, HEIGHT = 192, 128
# Packed convolutions round otherwise, and random networks make that ten times as large.
OPTIONS = {"sampler": "ddpm", "steps": STEPS, "width": WIDTH, "height": HEIGHT, "pack_weights": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kandinsky22")


@cache
def pipeline_of(kind: str):
    pipeline = files.tiny_22(kind)
    return files.with_exact_tables(pipeline, DIFFUSION_22)


@pytest.fixture(scope="module")
def stage(folder):
    def load(kind: str) -> DecoderStage:
        path = folder / kind.replace(" ", "-")
        if not path.exists():
            pipeline_of(kind).save_pretrained(path)
        return load_any_stage(path, expect="decoder")

    return cache(load)


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED + row) for row in range(rows)]


def embeddings(decoder: DecoderStage, seed: int, rows: int) -> Embedding:
    return Embedding(random_tensor(seed, rows, DIM), decoder.space)


def pictures(result) -> Tensor:
    found = torch.from_numpy(result.images).permute(0, 3, 1, 2)
    assert found.std() > 0.05
    return found


@pytest.mark.parametrize(("rows", "scale"), [(1, 4.0), (2, 4.0), (2, 1.0)])
def test_kandinsky22_decodes_what_diffusers_decodes(stage, rows: int, scale: float) -> None:
    decoder = stage("2.2")
    z, negative = embeddings(decoder, 0, rows), embeddings(decoder, 1, rows)
    theirs = pictures(
        pipeline_of("2.2")(
            z.vectors,
            negative.vectors,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            generator=generators(rows),
            output_type="np",
        )
    )
    given = {"seed": SEED, "options": DecodeOptions(guidance_scale=scale, **OPTIONS)}
    found = decode(decoder, z, negative_embedding=negative, **given)
    assert found.shape == (rows, 3, HEIGHT, WIDTH)
    assert difference(found, theirs) < WITHIN
    assert difference(decode(decoder, negative, negative_embedding=negative, **given), theirs) > OUTSIDE


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_kandinsky22_with_a_hint_decodes_what_diffusers_decodes(stage, scale: float) -> None:
    decoder = stage("2.2 depth")
    z, negative = embeddings(decoder, 0, 2), embeddings(decoder, 1, 2)
    hint = (random_tensor(2, 2, 3, 8, 12) > 0).float()
    hint = torch.nn.functional.interpolate(hint, (HEIGHT, WIDTH))
    theirs = pictures(
        pipeline_of("2.2 depth")(
            z.vectors,
            negative.vectors,
            hint=hint,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            generator=generators(2),
            output_type="np",
        )
    )
    given = {"seed": SEED, "options": DecodeOptions(guidance_scale=scale, **OPTIONS)}
    assert difference(decode(decoder, z, negative_embedding=negative, hint=hint, **given), theirs) < WITHIN
    small = torch.nn.functional.interpolate(hint, (HEIGHT // 2, WIDTH // 2))
    assert decode(decoder, z, negative_embedding=negative, hint=small, **given).shape == theirs.shape


def test_the_hint_is_squeezed_as_the_picture_to_inpaint_is(stage, monkeypatch) -> None:
    decoder = stage("2.2 depth")
    z, hint = embeddings(decoder, 0, 1), random_tensor(4, 1, 3, 64, 128).sigmoid()
    mask, options = (
        torch.ones(1, 1, 64, 128),
        InpaintOptions(steps=1, guidance_scale=1.0, width=64, height=64),
    )
    seen, condition = [], decoder.network.condition
    monkeypatch.setattr(
        decoder.network, "condition", lambda **given: seen.append(given["hint"]) or condition(**given)
    )
    inpaint(decoder, hint, mask, z, seed=0, options=options, hint=hint)
    torch.testing.assert_close(seen[0], resize(hint, (64, 64)))


def test_the_hint_of_a_whole_picture_is_cut_like_the_picture(stage, monkeypatch) -> None:
    decoder = stage("2.2 depth")
    z, negative = embeddings(decoder, 0, 1), embeddings(decoder, 1, 1)
    image, hint = random_tensor(3, 2, 3, 90, 140).sigmoid(), random_tensor(4, 1, 3, 90, 140).sigmoid()
    mask = torch.zeros(2, 1, 90, 140)
    mask[0, :, 10:30, 20:50] = mask[1, :, 60:80, 100:140] = 1
    seen = []

    def noted(decoder, image, mask, embedding, text=None, **given):
        seen.append((image, given["hint"]))
        return inpaint(decoder, image, mask, embedding, text, **given)

    monkeypatch.setattr("unclip.core.pipelines.inpaint_whole.inpaint", noted)
    given = {"decoder": decoder, "embedding": z, "negative_embedding": negative, "steps": 1, "width": 64}
    given |= {"mask": mask[:, 0], "height": 64, "image": sockets.image_from_core(image)}
    (found,) = run("UnCLIPInpaintWhole", **given, hint=sockets.image_from_core(image))
    assert found.shape == (2, 90, 140, 3)
    ((cut, its_hint),) = seen
    assert cut.shape == its_hint.shape == (2, 3, 64, 64) and torch.equal(cut, its_hint)
    run("UnCLIPInpaintWhole", **given, hint=sockets.image_from_core(hint))  # one for both
    assert seen[1][1].shape == cut.shape and difference(seen[1][1], cut) > OUTSIDE
    half = torch.nn.functional.interpolate(hint, (45, 70))
    run("UnCLIPInpaintWhole", **given, hint=sockets.image_from_core(half))  # of another size
    assert difference(seen[2][1], seen[1][1]) < difference(seen[0][1], seen[1][1])
    with pytest.raises(ValueError, match=r"^hint: .* needs a picture that shows where what is"):
        run("UnCLIPInpaintWhole", **given)


@pytest.mark.parametrize(("strength", "scale"), [(0.5, 4.0), (1.0, 4.0), (0.75, 1.0)])
def test_kandinsky22_begins_from_a_picture_as_diffusers_does(stage, strength: float, scale: float) -> None:
    from diffusers import KandinskyV22Img2ImgPipeline

    decoder = stage("2.2")
    z, negative = embeddings(decoder, 0, 2), embeddings(decoder, 1, 2)
    image = random_tensor(3, 2, 3, HEIGHT, WIDTH).mul(0.3).add(0.5).clamp(0, 1)
    theirs = KandinskyV22Img2ImgPipeline(**pipeline_of("2.2").components)
    theirs.set_progress_bar_config(disable=True)
    expected = pictures(
        theirs(
            z.vectors,
            2 * image - 1,
            negative.vectors,
            height=WIDTH,  # it takes one for the other
            width=HEIGHT,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            strength=strength,
            generator=generators(2),
            output_type="np",
        )
    )
    options = DecodeOptions(guidance_scale=scale, strength=strength, **OPTIONS)
    given = {"negative_embedding": negative, "seed": SEED, "options": options}
    assert difference(decode(decoder, z, image=image, **given), expected) < WITHIN
    assert difference(decode(decoder, z, image=image.flip(3), **given), expected) > OUTSIDE


def grown(keep: Tensor) -> Tensor:
    """diffusers' ``prepare_mask``: the minimum over a mask and six of its eight neighbours."""
    padded = torch.nn.functional.pad(keep, (1, 1, 1, 1), value=1.0)
    height, width = keep.shape[-2:]
    shifts = ((0, 0), (1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1))
    parts = [padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in shifts]
    return torch.stack(parts).amin(dim=0)


@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_kandinsky22_repaints_what_diffusers_repaints(stage, scale: float) -> None:
    decoder = stage("2.2 inpaint")
    z, negative = embeddings(decoder, 0, 1), embeddings(decoder, 1, 1)
    image = random_tensor(3, 1, 3, HEIGHT, WIDTH).mul(0.3).add(0.5).clamp(0, 1)
    repaint = torch.zeros(1, 1, HEIGHT // 8, WIDTH // 8)
    repaint[..., 4:10, 6:20] = 1
    wide = torch.nn.functional.interpolate(1 - grown(1 - repaint), scale_factor=8)
    theirs = pictures(
        pipeline_of("2.2 inpaint")(
            z.vectors,
            2 * image - 1,
            torch.nn.functional.interpolate(repaint, scale_factor=8),
            negative.vectors,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            generator=generators(1),
            output_type="np",
        )
    )
    options = InpaintOptions(steps=STEPS, guidance_scale=scale, width=WIDTH, height=HEIGHT)
    found = inpaint(decoder, image, wide, z, negative_embedding=negative, seed=SEED, options=options)
    inside = wide.expand_as(found) > 0
    assert difference(found[inside], theirs[inside]) < WITHIN
    assert torch.equal(found[~inside], image[~inside])
    narrow = torch.nn.functional.interpolate(repaint, scale_factor=8)
    other = inpaint(decoder, image, narrow, z, negative_embedding=negative, seed=SEED, options=options)
    assert difference(other[inside], theirs[inside]) > OUTSIDE


def test_kandinsky22_repaints_every_row_of_a_batch_from_its_own_picture(stage) -> None:
    """diffusers pastes the first picture into all: here row 1 is what it is alone, there it is not."""
    decoder = stage("2.2 inpaint")
    z = embeddings(decoder, 0, 2)
    images = random_tensor(3, 2, 3, HEIGHT, WIDTH).mul(0.3).add(0.5).clamp(0, 1)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 32:80, 48:160] = 1
    options = InpaintOptions(steps=STEPS, guidance_scale=1.0, width=WIDTH, height=HEIGHT)
    both = inpaint(decoder, images, mask, z, seed=SEED, options=options)
    second = Embedding(z.vectors[1:], z.space)
    alone = inpaint(decoder, images[1:], mask, second, seed=SEED + 1, options=options)
    assert difference(both[1:], alone) < WITHIN
    result = {}
    for rows in (2, 1):
        result[rows] = pictures(
            pipeline_of("2.2 inpaint")(
                z.vectors[-rows:],
                2 * images[-rows:] - 1,
                mask.expand(rows, -1, -1, -1).clone(),
                z.vectors[-rows:],
                height=HEIGHT,
                width=WIDTH,
                num_inference_steps=STEPS,
                guidance_scale=1.0,
                generator=generators(2)[-rows:],
                output_type="np",
            )
        )
    assert difference(result[2][1:], result[1]) > OUTSIDE


def test_the_steps_of_kandinsky22_are_those_of_diffusers() -> None:
    scheduler = files.scheduler_22()
    scheduler.set_timesteps(50)
    ours = schedule_of(DIFFUSION_22).respace(50)
    assert ours.timesteps.flip(0).tolist() == scheduler.timesteps.tolist()
