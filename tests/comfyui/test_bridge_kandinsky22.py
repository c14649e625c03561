"""Kandinsky's decoders and their autoencoder inside ComfyUI: its own samplers, VAE nodes and previews."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ..helpers import kandinsky_files as files
from ..helpers import karlo
from .bridge_probe import STEPS

SEED, CFG = 7, 2.0
LOAD, TEXT, PRIOR, MODEL, VAE, LATENT, SAMPLE = "1", "2", "3", "11", "12", "13", "14"
PICTURE, ENCODED, MASK, MASKED = "20", "21", "22", "23"
SAVES = {"VAEDecode": "31", "VAEDecodeTiled": "32"}


@pytest.fixture(scope="module")
def measured(comfyui_dir):
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    probe = Path(__file__).with_name("latent_probe.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(probe), str(comfyui_dir)], capture_output=True, text=True, env=environment, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", ["2.2", "2.2 depth", "2.2 inpaint", "2.1", "negative"])
def test_every_kandinsky22_decoder_gives_our_pictures(measured, kind):
    found = measured["sampling"][kind]
    assert found["difference"] < 0.01
    assert found["other"] > 20


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_kandinsky22_changes_a_picture_as_ours_does(measured, kind):
    found = measured["from_a_picture"][kind]
    assert found["difference"] < 0.01
    assert found["other"] > 0.5


def test_the_inpainting_decoder_keeps_what_is_not_masked(measured):
    assert measured["from_a_picture"]["mask"]["kept"] < 1e-5


def test_an_area_sees_its_part_of_the_hint(measured):
    assert measured["areas"]["difference"] < 0.01
    assert measured["areas"]["other"] > 0.1


def test_the_vae_is_the_movq_of_unclip(measured):
    found = measured["autoencoding"]
    assert found["decode"] < 1e-3 and found["decode_tiled"] < 0.01, "8 bits"
    assert found["encode"] < 1e-5 and found["encode_tiled"] < 1e-3 and found["latent"] > 0.1
    assert (found["compression"], found["channels"]) == (8, 4)
    assert found["memory_of_a_batch"] == 1, "pictures are decoded one after the other"


def test_previews_are_ours(measured):
    found = measured["autoencoding"]
    assert found["preview"] <= 1.01, "ComfyUI cuts off what ours rounds"
    assert found["colours"] > 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("size", "latent_image: found one of a picture of 128×120 pixels, but this decoder paints multiples"),
        ("null", "negative_embedding: the negative condition is the CLIP embedding of an all-zero picture"),
        ("hint", "hint: "),
        ("pictures", "decoder: "),
        ("saved", "vae: ComfyUI's files have no place for this autoencoder"),
    ],
)
def test_what_kandinsky22_cannot_do_is_refused(measured, name, message):
    assert measured["refusals"][name].startswith(message)


@pytest.fixture(scope="module")
def bundle(models) -> Iterator[str]:
    folder = models / "kandinsky22-bridge"
    karlo.save_as_published(karlo.tiny_kandinsky_prior(), folder / "prior")
    files.tiny_22().save_pretrained(folder / "decoder")
    yield folder.name
    shutil.rmtree(folder)  # the other tests know what the folder of models holds


def graph(bundle: str, latent: str, **sample) -> dict:
    """Through KSampler, from an empty latent or an encoded picture, to both kinds of VAE Decode."""
    settings = {"steps": STEPS, "cfg": CFG, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}
    tiles = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    nodes = {
        LOAD: ("UnCLIPLoadBundle", {"bundle": bundle, "precision": "fp32"}),
        TEXT: ("UnCLIPTextEncode", {"clip": [LOAD, 0], "text": "a red fox"}),
        PRIOR: ("UnCLIPTextAsImageEmbedding", {"text": [TEXT, 0], "batch_size": 1}),
        MODEL: ("UnCLIPDecoderAsModel", {"decoder": [LOAD, 2], "embedding": [PRIOR, 0]}),
        VAE: ("UnCLIPAutoencoderAsVAE", {"decoder": [LOAD, 2]}),
        LATENT: ("EmptyLatentImage", {"width": 128, "height": 64, "batch_size": 2}),
        PICTURE: ("EmptyImage", {"width": 128, "height": 64, "batch_size": 1, "color": 0x3060C0}),
        MASK: ("SolidMask", {"value": 1.0, "width": 128, "height": 64}),
        ENCODED: ("VAEEncode", {"pixels": [PICTURE, 0], "vae": [VAE, 0]}),
        ENCODED + "t": (
            "VAEEncodeTiled",
            {"pixels": [PICTURE, 0], "vae": [VAE, 0], **tiles},
        ),
        MASKED: ("SetLatentNoiseMask", {"samples": [ENCODED, 0], "mask": [MASK, 0]}),
        MASKED + "v": (
            "VAEEncodeForInpaint",
            {"pixels": [PICTURE, 0], "vae": [VAE, 0], "mask": [MASK, 0], "grow_mask_by": 0},
        ),
        SAMPLE: (
            "KSampler",
            {
                "model": [MODEL, 0],
                "positive": [MODEL, 1],
                "negative": [MODEL, 2],
                "latent_image": [latent, 0],
                "seed": SEED,
                **settings,
                **sample,
            },
        ),
        "VAEDecode": ("VAEDecode", {"samples": [SAMPLE, 0], "vae": [VAE, 0]}),
        "VAEDecodeTiled": ("VAEDecodeTiled", {"samples": [SAMPLE, 0], "vae": [VAE, 0], **tiles}),
        SAVES["VAEDecode"]: ("SaveImage", {"images": ["VAEDecode", 0], "filename_prefix": "whole"}),
        SAVES["VAEDecodeTiled"]: ("SaveImage", {"images": ["VAEDecodeTiled", 0], "filename_prefix": "tiles"}),
    }
    return {node: {"class_type": kind, "inputs": given} for node, (kind, given) in nodes.items()}


def painted(server, prompt) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of VAE Decode and of its tiled kind, [B, H, W, 3]."""
    run = server.run(prompt)
    assert run.kinds[-1] == "execution_success", run.of("execution_error")
    pictures = [np.stack(server.pictures(run, SAVES[kind])).astype(float) for kind in SAVES]
    return pictures[0], pictures[1]


def test_ksampler_and_vae_nodes_paint_with_kandinsky22(server, bundle):
    whole, tiles = painted(server, graph(bundle, LATENT))
    assert whole.shape == (2, 64, 128, 3) and whole.std() > 10
    assert np.abs(whole - tiles).mean() < 0.5
    other, _ = painted(server, graph(bundle, LATENT, seed=SEED + 1))
    assert np.abs(other - whole).mean() > 5


@pytest.mark.parametrize("latent", [ENCODED, ENCODED + "t", MASKED, MASKED + "v"])
def test_pictures_enter_kandinsky22_by_vae_nodes(server, bundle, latent):
    whole, tiles = painted(server, graph(bundle, latent, denoise=0.5))
    assert whole.shape == (1, 64, 128, 3) and whole.std() > 5
    assert np.abs(whole - tiles).mean() < 0.5
