"""Kandinsky 2.1's pipelines against diffusers': the same weights, noise and steps, in float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DDPMScheduler, KandinskyImg2ImgPipeline
from torch import Tensor
from unclip.core.diffusion.schedule import schedule_of
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.layouts.diffusers_files import read_scheduler
from unclip.core.formats.layouts.kandinsky import DIFFUSION_21
from unclip.core.formats.load import load_any_bundle
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.canvas import to_network, to_pictures
from unclip.core.pipelines.conditioning import null_embedding
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.decode import DecodeOptions, decode, decoder_denoiser
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.pipelines.rows import masked_picture
from unclip.core.pipelines.zero_shot import zero_shot
from unclip.core.stages import Bundle

from ...helpers import kandinsky_files as files
from ...helpers.karlo import DIM
from ...helpers.unet import difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
SEED, STEPS = 5, 4
WIDTH, HEIGHT = 192, 128
CAPTIONS, NEGATIVE = ["a red cat", "ein blauer würfel"], "grey"
OPTIONS = {"sampler": "ddpm", "steps": STEPS, "width": WIDTH, "height": HEIGHT, "pack_weights": False}
PUBLISHED = DiffusionSpec(
    schedule="linear",
    beta_start=0.00085,
    beta_end=0.012,
    variance="fixed_small",
    clip_x0=None,
    spacing="leading",
)
"""What the folder's DDIM scheduler says, but that DDIM has no variance."""


# Clamped as the original's p_sampler: without a clamp, as the published scheduler has none, latents of a
# random network grow with every step, and rounding with them.
SPEC = replace(DIFFUSION_21, spacing="leading")


@cache
def pipeline_of(kind: str):
    pipeline = files.tiny_21(kind)
    pipeline.scheduler = DDPMScheduler(
        **files.BETAS, variance_type="learned_range", clip_sample=True, clip_sample_range=2.0
    )
    return files.with_exact_tables(pipeline, SPEC)


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


def pictures(result) -> Tensor:
    found = torch.from_numpy(result.images).permute(0, 3, 1, 2)
    assert found.std() > 0.05
    return found


def given(found: Bundle, rows: int = 2) -> dict:
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
        "generator": generators(rows),
        "output_type": "np",
    }


def test_kandinsky21s_folder_tells_its_scheduler(bundle, tmp_path) -> None:
    assert bundle("2.1").decoder.diffusion == SPEC
    files.scheduler_21().save_pretrained(tmp_path / "scheduler")
    assert read_scheduler(tmp_path / "scheduler", SPEC) == PUBLISHED
    assert (DIFFUSION_21.variance, DIFFUSION_21.clip_x0) == ("learned_range", 2.0)  # of the original's files


@pytest.mark.parametrize(("rows", "scale"), [(1, 4.0), (2, 4.0), (2, 1.0)])
def test_kandinsky21_decodes_what_diffusers_decodes(bundle, rows: int, scale: float) -> None:
    conditions = given(bundle("2.1"), rows)
    theirs = pictures(pipeline_of("2.1")(**theirs_given(conditions, scale)))
    options = DecodeOptions(guidance_scale=scale, **OPTIONS)
    decoder = bundle("2.1").decoder
    assert difference(decode(decoder, **conditions, seed=SEED, options=options), theirs) < WITHIN
    other = conditions | {"text": encode_text(bundle("2.1").decoder_text, ["x"] * rows)}
    assert difference(decode(decoder, **other, seed=SEED, options=options), theirs) > OUTSIDE


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_kandinsky21_begins_from_a_picture_with_the_betas_that_it_denoises_with(bundle, strength) -> None:
    """The original, and diffusers with it, noises with others: both values are shown."""
    decoder, conditions = bundle("2.1").decoder, given(bundle("2.1"))
    image = random_tensor(3, 2, 3, HEIGHT, HEIGHT).mul(0.3).add(0.5).clamp(0, 1)
    theirs = KandinskyImg2ImgPipeline(**pipeline_of("2.1").components)
    theirs.set_progress_bar_config(disable=True)
    square = {"height": HEIGHT, "width": HEIGHT}  # it takes one for the other at one place of two
    arguments = theirs_given(conditions, 4.0) | square | {"image": 2 * image - 1, "strength": strength}
    as_published = pictures(theirs(**arguments))
    first = theirs.scheduler.timesteps[STEPS - int(STEPS * strength)]

    def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return theirs.scheduler.add_noise(clean, noise, first.expand(len(timesteps)))

    theirs.add_noise = add_noise
    arguments["generator"] = generators(2)
    corrected = pictures(theirs(**arguments))
    options = DecodeOptions(guidance_scale=4.0, strength=strength, **OPTIONS | square)
    found = decode(decoder, **conditions, seed=SEED, options=options, image=image)
    assert difference(found, corrected) < WITHIN
    assert difference(found, as_published) > OUTSIDE


@pytest.mark.parametrize("scale", [3.0, 1.0])  # at 4 the rounding of some processors comes to 1.1e-4
def test_kandinsky21_repaints_what_diffusers_repaints_before_the_known_is_put_in(bundle, scale) -> None:
    """diffusers never puts the known part in: the network's own picture is compared, then ours with it in."""
    from unclip.core.diffusion.denoiser import ClampedDenoiser
    from unclip.core.diffusion.noise import draw_noise, image_generators
    from unclip.core.diffusion.samplers import sample_ddpm

    decoder, conditions = bundle("2.1 inpaint").decoder, given(bundle("2.1 inpaint"), 1)
    image = random_tensor(3, 1, 3, HEIGHT, WIDTH).mul(0.3).add(0.5).clamp(0, 1)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., :64] = 1  # of which prepare_mask makes a column more
    theirs = pictures(
        pipeline_of("2.1 inpaint")(
            **theirs_given(conditions, scale), image=2 * image - 1, mask_image=mask.clone()
        )
    )
    repaint = torch.zeros(1, 1, HEIGHT // 8, WIDTH // 8, dtype=torch.bool)
    repaint[..., :9] = True
    options = DecodeOptions(guidance_scale=scale, **OPTIONS)
    schedule = schedule_of(decoder.diffusion).respace(STEPS)
    concat = masked_picture(to_network(decoder, image), repaint)
    size = (HEIGHT, WIDTH)
    denoiser = decoder_denoiser(decoder, schedule, Conditions(**conditions), 1, options, concat, size)
    own = image_generators(SEED, 1)
    x = draw_noise(own, (4, HEIGHT // 8, WIDTH // 8))
    clamped = ClampedDenoiser(denoiser, SPEC.clip_x0)
    x = sample_ddpm(clamped, x, schedule, generators=own, variance="learned_range")
    found = to_pictures(decoder, x)
    assert difference(found, theirs) < WITHIN

    wide = repaint.float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    ours = InpaintOptions(steps=STEPS, guidance_scale=scale, eta=0.0, width=WIDTH, height=HEIGHT)
    kept = inpaint(decoder, image, wide, **conditions, seed=SEED, options=ours)
    assert torch.equal(kept[..., 72:], image[..., 72:])
    assert difference(theirs[..., 72:], image[..., 72:]) > OUTSIDE


def test_kandinsky21_needs_a_caption(bundle) -> None:
    conditions = given(bundle("2.1")) | {"text": None}
    with pytest.raises(ValueError, match="this decoder needs a caption"):
        decode(bundle("2.1").decoder, **conditions, seed=0)


def test_kandinsky21s_text_encoder_refuses_pictures(bundle) -> None:
    found = bundle("2.1")
    reader = found.decoder_text
    with pytest.raises(ValueError, match=r"Kandinsky 2\.1's text encoder, which cannot encode pictures"):
        encode_images(reader, torch.rand(1, 3, 8, 8))
    features = encode_text(reader, CAPTIONS)
    with pytest.raises(ValueError, match=r"Kandinsky 2\.1's text encoder, which cannot compare captions"):
        zero_shot(reader, Embedding(features.pooled, reader.space), features)
    config = found.decoder.network.config
    unknown = replace(config, conditioning=replace(config.conditioning, learned_null=False))
    decoder = replace(found.decoder, network=UNet(unknown))
    with pytest.raises(ValueError, match="cannot encode an all-zero picture"):
        null_embedding(decoder, clip=replace(reader, space=decoder.space))
