"""The bridge nodes inside ComfyUI: its own unCLIP conditioning, and its own samplers on our decoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .bridge_probe import STEPS
from .prompts import DECODE, LOAD, PRIOR, TEXT, text_to_image
from .shipped import HAS_MINI

SEED, CFG = 7, 2.0
MODEL, LATENT, SAMPLE, VAE, PIXELS, SAVE = "11", "12", "13", "14", "15", "16"
TO, ADM, FROM, OTHER, BOTH = "21", "22", "23", "24", "25"


@pytest.fixture(scope="module")
def measured(comfyui_dir):
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    probe = Path(__file__).with_name("bridge_probe.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(probe), str(comfyui_dir)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_native_conditioning_is_that_of_clip_vision_encode(measured):
    found = measured["conditioning"]
    assert found["own_class"] == 1.0
    assert found["embeds"] == 0.0 and found["adm"] == 0.0
    assert found["summed"] > 0.5, "a batch would have become one condition"


@pytest.mark.parametrize("kind", ["v", "x0", "eps", "linear", "unclamped"])
def test_every_kind_of_decoder_gives_our_pictures(measured, kind):
    found = measured["sampling"][kind]
    assert found["difference"] < 0.5
    assert found["other"] > 20


def test_a_merge_of_decoders_changes_nothing_but_what_it_samples(measured):
    found = measured["merged"]
    assert found.pop("merge") > 0.01
    assert found == dict.fromkeys(("decode", "model", "again", "back", "gone"), 0.0)


def test_another_compute_dtype_leaves_the_decoder_its_own(measured):
    assert measured["computed_in_fp16"] < 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "conditioning: it was not made for this decoder."),
        ("stranger", "conditioning: it was not made for this decoder."),
        ("averaged", "conditioning: a node between unCLIP Decoder as Model and the sampler changed it"),
        ("batch", "latent_image: found 2 latents for 3 embeddings."),
        ("area", "conditioning: it holds in an area of 9×11 pixels only (Conditioning (Set Area), or"),
        ("levels", "model: a node between unCLIP Decoder as Model and the sampler gave it noise levels of"),
        ("attention", "model: what reaches into a network (attn1) was put on it"),
        ("hooked", "model: what reaches into a network (output_block_patch) was put on it"),
        ("saved", "model: ComfyUI's files have no place for a decoder of unCLIP"),
    ],
)
def test_what_does_not_fit_is_refused(measured, name, message):
    assert measured["refusals"][name].startswith(message)


def native(bundle: str, size: int, seed: int = SEED, **sample) -> dict:
    """Our picture saved, and the same embedding through ComfyUI's KSampler."""
    prompt = text_to_image(
        bundle=bundle, seed=SEED, steps=STEPS, guidance_scale=CFG, sampler="ddim", text="a red fox"
    )
    prompt = {node: prompt[node] for node in (LOAD, TEXT, PRIOR, DECODE)}
    prompt[DECODE]["inputs"]["text"] = [TEXT, 0]
    settings = {"steps": STEPS, "cfg": CFG, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}
    nodes = {
        MODEL: ("UnCLIPDecoderAsModel", {"decoder": [LOAD, 2], "embedding": [PRIOR, 0], "text": [TEXT, 0]}),
        LATENT: ("EmptyChromaRadianceLatentImage", {"width": size, "height": size, "batch_size": 1}),
        SAMPLE: (
            "KSampler",
            {
                "model": [MODEL, 0],
                "positive": [MODEL, 1],
                "negative": [MODEL, 2],
                "latent_image": [LATENT, 0],
                "seed": seed,
                **settings,
                **sample,
            },
        ),
        VAE: ("VAELoader", {"vae_name": "pixel_space"}),
        PIXELS: ("VAEDecode", {"samples": [SAMPLE, 0], "vae": [VAE, 0]}),
        SAVE: ("SaveImage", {"images": [PIXELS, 0], "filename_prefix": "native"}),
        SAVE + "0": ("SaveImage", {"images": [DECODE, 0], "filename_prefix": "ours"}),
    }
    return {
        **prompt,
        **{node: {"class_type": kind, "inputs": given} for node, (kind, given) in nodes.items()},
    }


def saved(server, prompt, *nodes: str) -> list[list[np.ndarray]]:
    """The pictures of each of these SaveImage nodes."""
    run = server.run(prompt)
    assert run.kinds[-1] == "execution_success", run.of("execution_error")
    return [[each.astype(float) for each in server.pictures(run, node)] for node in nodes]


@pytest.mark.skipif(not HAS_MINI, reason="the embedded bundle is not there")
def test_ksampler_paints_the_picture_of_unclip_decode(server):
    ((theirs,), (ours,)) = saved(server, native("mini", 64), SAVE, SAVE + "0")
    assert theirs.shape == (64, 64, 3) and theirs.std() > 10
    assert np.abs(theirs - ours).mean() < 0.5
    ((other,), _) = saved(server, native("mini", 64, seed=SEED + 1), SAVE, SAVE + "0")
    assert np.abs(other - ours).mean() > 5
    ((similar,), _) = saved(server, native("mini", 64, sampler_name="dpmpp_2m"), SAVE, SAVE + "0")
    assert np.corrcoef(similar.ravel(), ours.ravel())[0, 1] > 0.9, "another sampler, the same picture"


def test_a_latent_of_another_size_is_refused_by_a_decoder_of_one_size(server):
    if not HAS_MINI:
        pytest.skip("the embedded bundle is not there")
    run = server.run(native("mini", 128))
    (error,) = run.of("execution_error")
    assert error["node_id"] == SAMPLE
    assert error["exception_message"].startswith("latent_image: found 128×128 pixels")


def test_embeddings_go_to_native_nodes_and_back(server):
    """Through unCLIPConditioning on the way, once for each embedding of the batch."""
    prompt = native("tiny", 16)
    prompt[DECODE]["inputs"]["embedding"] = [FROM, 0]
    prompt[MODEL]["inputs"]["embedding"] = [FROM, 0]
    prompt[SAMPLE]["inputs"]["positive"] = [ADM, 0]
    nodes = {
        OTHER: ("UnCLIPTextAsImageEmbedding", {"text": [TEXT, 0], "batch_size": 1}),
        BOTH: (
            "UnCLIPInterpolate",
            {"first": [PRIOR, 0], "second": [OTHER, 0], "frames": 2, "ease": "linear"},
        ),
        TO: ("UnCLIPToClipVision", {"embedding": [BOTH, 0], "target": "any"}),
        ADM: (
            "unCLIPConditioning",
            {
                "conditioning": [MODEL, 1],
                "clip_vision_output": [TO, 0],
                "strength": 1.0,
                "noise_augmentation": 0.0,
            },
        ),
        FROM: ("UnCLIPFromClipVision", {"clip_vision_output": [TO, 0], "stage": [LOAD, 0]}),
    }
    prompt |= {node: {"class_type": kind, "inputs": given} for node, (kind, given) in nodes.items()}
    theirs, ours = saved(server, prompt, SAVE, SAVE + "0")
    assert len(theirs) == len(ours) == 2
    for native_picture, picture in zip(theirs, ours, strict=True):
        assert np.abs(native_picture - picture).mean() < 0.5
    for source, picture in ((PRIOR, ours[0]), (OTHER, ours[1])):
        prompt[DECODE]["inputs"]["embedding"] = [source, 0]
        _, (direct,) = saved(server, prompt, SAVE, SAVE + "0")
        assert np.abs(direct - picture).mean() < 0.5
    assert np.abs(ours[1] - ours[0]).mean() > 2


def test_a_target_of_another_space_is_refused(server):
    prompt = native("tiny", 16)
    prompt[TO] = {
        "class_type": "UnCLIPToClipVision",
        "inputs": {"embedding": [PRIOR, 0], "target": "sd21-unclip-l"},
    }
    prompt[FROM] = {"class_type": "UnCLIPFromClipVision", "inputs": {"clip_vision_output": [TO, 0]}}
    prompt[DECODE]["inputs"]["embedding"] = [FROM, 0]
    (error,) = server.run(prompt).of("execution_error")
    assert error["node_id"] == TO
    assert "'unclip/tiny'" in error["exception_message"] and "'openai/ViT-L-14'" in error["exception_message"]
