"""``unclip inspect``: what a file or a bundle is."""

from __future__ import annotations

import json
from math import prod

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.native.classifier import save_classifier
from unclip.core.formats.native.embedding_file import save_embedding
from unclip.core.networks.classifier import Classifier, ClassifierConfig

from ..helpers.bundle import DIM, tiny_bundle, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


def inspect(*words):
    return CliRunner().invoke(build_app(), ["inspect", *map(str, words)])


def as_json(*words):
    result = inspect(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def parameters(network):
    return sum(prod(tensor.shape) for tensor in network.state_dict().values())


def test_a_checkpoint(bundle):
    found = as_json(bundle / "decoder.safetensors")
    network = tiny_bundle().decoder.network
    assert found["format"] == "unclip"
    assert found["stage"] == "decoder"
    assert found["parameters"] == parameters(network)
    assert found["dtypes"] == {"F32": parameters(network)}
    assert found["bytes"] == 4 * parameters(network)
    assert found["space"]["id"] == "unclip/tiny"
    assert found["diffusion"]["prediction"] == "v"
    assert found["config"]["image_size"] == network.config.image_size


def test_for_people(bundle):
    result = inspect(bundle / "prior.safetensors")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "stage prior" in text
    assert "F32 (100%)" in text
    assert f'CLIP space id "unclip/tiny", dim {DIM}, ' in text
    assert f"mean [{DIM} values]" in text
    assert "diffusion.prediction" in text
    assert result.stderr == ""


def test_an_upsampler_has_no_space(bundle):
    found = as_json(bundle / "upsampler-32.safetensors")
    assert found["stage"] == "upsampler"
    assert found["space"] is None
    assert found["low_size"] == 16


def test_a_bundle(bundle):
    found = as_json(bundle)
    assert found["format"] == "unclip bundle"
    assert found["name"] == "tiny"
    assert [stage["stage"] for stage in found["stages"]] == [
        "clip",
        "prior",
        "prior",
        "decoder",
        "upsampler",
        "upsampler",
    ]
    assert found["parameters"] == sum(stage["parameters"] for stage in found["stages"])
    shown = " ".join(inspect(bundle).stdout.split())
    assert "stages clip, prior, prior, decoder, upsampler, upsampler" in shown


def test_the_settings_that_a_bundle_asks_for(bundle, tmp_path):
    assert "defaults" not in inspect(bundle).stdout
    asks = write_tiny_bundle(tmp_path / "asks")
    path = asks / "bundle.json"
    said = {"decoder": {"sampler": "unipc", "steps": 9}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "defaults": said}))
    assert as_json(asks)["defaults"] == said
    assert "decoder defaults" in inspect(asks).stdout and "sampler unipc, steps 9" in inspect(asks).stdout


def test_a_strangers_safetensors_file(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.float16)}, path)
    found = as_json(path)
    assert found["format"] == "safetensors"
    assert found["parameters"] == 17
    assert found["bytes"] == 64
    assert found["dtypes"] == {"F32": 15, "F16": 2}
    result = inspect(path)
    assert result.exit_code == 0
    assert "is not a checkpoint that unclip knows" in " ".join(result.stderr.split())


def test_things_that_are_no_checkpoint(tmp_path):
    missing = inspect(tmp_path / "gone.safetensors")
    assert missing.exit_code == 1
    assert "gone.safetensors: there is no such file" in missing.stderr
    (tmp_path / "x.safetensors").write_bytes(b"not at all")
    damaged = inspect(tmp_path / "x.safetensors")
    assert damaged.exit_code == 1
    assert damaged.stderr.count("\n") == 1
    assert "x.safetensors" in damaged.stderr
    folder = inspect(tmp_path)
    assert folder.exit_code == 1
    assert "has no bundle.json" in folder.stderr


def test_unclips_own_files_that_are_no_stages_are_told(bundle, tmp_path):
    space = EmbeddingSpace("unclip/tiny", DIM)
    saved = save_embedding(Embedding(torch.zeros(2, DIM), space), tmp_path / "fox.safetensors")
    said = inspect(saved).stderr
    assert "is a file of embeddings" in said and "Load unCLIP Embedding" in said
    shard = tmp_path / "embeddings-000000.safetensors"
    save_file({name: torch.zeros(1) for name in ("image", "text", "caption_ends", "key_ends")}, shard)
    assert "is a shard of embeddings that unclip embed has made" in inspect(shard).stderr
    judge = Classifier(ClassifierConfig(("fox", "cat"), 32, (1, 1, 1, 1)))
    said = inspect(save_classifier(judge, tmp_path / "classifier.safetensors")).stderr
    assert "is a classifier, which judges pictures for unclip eval" in said and "update" not in said
