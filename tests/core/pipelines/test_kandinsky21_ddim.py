"""Kandinsky 2.1 by its published scheduler, DDIM, against diffusers: the same weights and noise, in float32.

Nothing is clamped, as published, and a random network does not find the noise: latents grow fourteenfold. So
the networks give small outputs, and what they start from is small.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, KandinskyImg2ImgPipeline, KandinskyInpaintPipeline
from torch import Tensor
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.samplers import sample_ddim
from unclip.core.diffusion.schedule import schedule_of
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.load import load_any_bundle
from unclip.core.pipelines.canvas import to_network, to_pictures
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.decode import DecodeOptions, decode, decoder_denoiser
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.rows import masked_picture
from unclip.core.stages import Bundle

from ...helpers import kandinsky_files as files
from ...helpers.karlo import DIM
from ...helpers.unet import difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
SEED, STEPS = 5, 5
WIDTH, HEIGHT = 192, 128
CAPTIONS, NEGATIVE = ["a red cat", "ein blauer würfel"], "grey"
PUBLISHED = DiffusionSpec(
    schedule="linear", beta_start=0.00085, beta_end=0.012, clip_x0=None, spacing="leading"
)


@cache
def pipeline_of(kind: str):
    pipeline = files.tiny_21(kind)
    pipeline.scheduler = files.scheduler_21()
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(0.05)
    return files.with_exact_tables(pipeline, PUBLISHED)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kandinsky21")

    def load(kind: str) -> Bundle:
        path = folder / kind.replace(" ", "-")
        if not path.exists():
            files.save_21(pipeline_of(kind), path)
        return load_any_bundle(path)

    return cache(load)


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED + row) for row in range(rows)]


def start(rows: int) -> Tensor:
    return 0.1 * draw_noise(image_generators(SEED, rows), (4, HEIGHT // 8, WIDTH // 8))


def pictures(result) -> Tensor:
    found = torch.from_numpy(result.images).permute(0, 3, 1, 2)
    assert found.std() > 0.05
    return found


def options(scale: float, **more) -> DecodeOptions:
    return DecodeOptions(
        **{
            "sampler": "ddim",
            "steps": STEPS,
            "guidance_scale": scale,
            "width": WIDTH,
            "height": HEIGHT,
            "pack_weights": False,
            **more,
        }
    )


def given(found: Bundle, rows: int) -> dict:
    space = found.decoder.space
    return {
        "embedding": Embedding(random_tensor(0, rows, DIM), space),
        "text": encode_text(found.decoder_text, CAPTIONS[:rows]),
        "negative_embedding": Embedding(random_tensor(1, rows, DIM), space),
        "negative_text": encode_text(found.decoder_text, [NEGATIVE]),
    }


def theirs_given(conditions: dict, scale: float) -> dict:
    rows = len(conditions["embedding"])
    return {
        "prompt": CAPTIONS[:rows],
        "image_embeds": conditions["embedding"].vectors,
        "negative_image_embeds": conditions["negative_embedding"].vectors,
        "negative_prompt": [NEGATIVE] * rows,
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": STEPS,
        "guidance_scale": scale,
        "latents": start(rows),
        "output_type": "np",
    }


@pytest.mark.parametrize(("rows", "scale"), [(1, 4.0), (2, 4.0), (2, 1.0)])
def test_kandinsky21_decodes_by_ddim_what_diffusers_decodes(bundle, rows: int, scale: float) -> None:
    found = bundle("2.1")
    assert found.decoder.diffusion == PUBLISHED
    conditions = given(found, rows)
    theirs = pictures(pipeline_of("2.1")(**theirs_given(conditions, scale)))
    own = {"seed": SEED, "options": options(scale), "noise": start(rows)}
    ours = decode(found.decoder, **conditions, **own)
    assert difference(ours, theirs) < WITHIN
    other = conditions | {"text": encode_text(found.decoder_text, ["x"] * rows)}
    assert difference(decode(found.decoder, **other, **own), theirs) > OUTSIDE


def test_kandinsky21s_last_step_ends_at_the_clean_latent(bundle) -> None:
    """Where we differ: the published config leaves the noise of timestep 0 in, and is 1 timestep late."""
    found, pipeline = bundle("2.1"), pipeline_of("2.1")
    conditions = given(found, 2)
    ours = decode(found.decoder, **conditions, seed=SEED, options=options(4.0), noise=start(2))
    ended = pictures(pipeline(**theirs_given(conditions, 4.0)))
    own = pipeline.scheduler
    pipeline.scheduler = DDIMScheduler(
        **files.BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    try:
        as_published = pictures(pipeline(**theirs_given(conditions, 4.0)))
    finally:
        pipeline.scheduler = own
    assert difference(ours, ended) < WITHIN
    assert difference(ours, as_published) > OUTSIDE
    assert (ours - as_published).abs().mean() < 0.05  # a thousandth of the way is little to see


@pytest.mark.parametrize(("strength", "scale"), [(0.6, 4.0), (0.6, 1.0), (0.4, 4.0)])
def test_kandinsky21_begins_from_a_picture_by_ddim_as_diffusers_does(bundle, strength, scale) -> None:
    """With the betas that it denoises with in place of the original's, see test_kandinsky21.py."""
    found = bundle("2.1")
    conditions = given(found, 2)
    image = random_tensor(3, 2, 3, HEIGHT, HEIGHT).mul(0.3).add(0.5).clamp(0, 1)
    theirs = KandinskyImg2ImgPipeline(**pipeline_of("2.1").components)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler.set_timesteps(STEPS)
    first = theirs.scheduler.timesteps[STEPS - int(STEPS * strength)]

    def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return theirs.scheduler.add_noise(clean, noise, first.expand(len(timesteps)))

    theirs.add_noise = add_noise
    square = {"height": HEIGHT, "width": HEIGHT}  # it takes one for the other at one place of two
    arguments = theirs_given(conditions, scale) | square | {"image": 2 * image - 1, "strength": strength}
    arguments["generator"] = generators(2)
    del arguments["latents"]
    expected = pictures(theirs(**arguments))
    chosen = options(scale, strength=strength, **square)
    ours = decode(found.decoder, **conditions, seed=SEED, options=chosen, image=image)
    assert difference(ours, expected) < WITHIN
    other = decode(found.decoder, **conditions, seed=SEED, options=chosen, image=image.flip(3))
    assert difference(other, expected) > OUTSIDE


@pytest.mark.parametrize(("rows", "scale"), [(1, 4.0), (2, 4.0), (2, 1.0)])
def test_kandinsky21_repaints_by_ddim_what_diffusers_repaints(bundle, rows: int, scale: float) -> None:
    """diffusers never puts the known part in: the network's own picture is compared."""
    decoder, conditions = bundle("2.1 inpaint").decoder, given(bundle("2.1 inpaint"), rows)
    image = random_tensor(3, rows, 3, HEIGHT, WIDTH).mul(0.3).add(0.5).clamp(0, 1)
    mask = torch.zeros(rows, 1, HEIGHT, WIDTH)
    mask[..., :64] = 1  # of which prepare_mask makes a column more
    pipeline = pipeline_of("2.1 inpaint")
    assert isinstance(pipeline, KandinskyInpaintPipeline)
    arguments = theirs_given(conditions, scale) | {"image": 2 * image - 1, "mask_image": mask.clone()}
    theirs = pictures(pipeline(**arguments))
    repaint = torch.zeros(rows, 1, HEIGHT // 8, WIDTH // 8, dtype=torch.bool)
    repaint[..., :9] = True
    schedule = schedule_of(decoder.diffusion).respace(STEPS)
    concat = masked_picture(to_network(decoder, image), repaint)
    denoiser = decoder_denoiser(
        decoder, schedule, Conditions(**conditions), rows, options(scale), concat, (HEIGHT, WIDTH)
    )
    ours = to_pictures(decoder, sample_ddim(denoiser, start(rows), schedule, generators=None))
    assert difference(ours, theirs) < WITHIN
    blind = decoder_denoiser(
        decoder, schedule, Conditions(**conditions), rows, options(scale), 0 * concat, (HEIGHT, WIDTH)
    )
    other = to_pictures(decoder, sample_ddim(blind, start(rows), schedule, generators=None))
    assert difference(other, theirs) > OUTSIDE
