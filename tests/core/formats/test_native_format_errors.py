"""Files of the native format that cannot be read, and what the errors say of them."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from unclip.core.formats.files import safetensors_io
from unclip.core.formats.native import checkpoints as native
from unclip.core.formats.native.checkpoints import (
    load_bundle,
    load_stage,
    read_header,
    save_bundle,
    save_stage,
)
from unclip.core.stages import Bundle

from ...helpers.bundle import tiny_bundle
from ...helpers.native import SHARD_BYTES, read_json_header, rewrite

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def header(content: dict) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def test_the_wrong_stage_is_named(saved) -> None:
    expected = "holds a decoder, but a prior is expected here. Load it with the decoder loader, and choose"
    with pytest.raises(ValueError, match=re.escape(f"{saved}: {expected} a prior file here")):
        load_stage(saved, expect="prior")
    with pytest.raises(ValueError, match="holds a decoder, but an upsampler is expected"):
        load_stage(saved, expect="upsampler")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(100), "is not a safetensors file (it looks like a PyTorch .pt or .ckpt file)"),
        (b"version https://git-lfs.github.com/spec/v1", "(it looks like a Git LFS pointer"),
        (b"<!doctype html><html>", "(it looks like a web page)"),
        (b"", "is not a safetensors file (the file is empty); expected a checkpoint saved as .safetensors"),
        (struct.pack("<Q", 20) + b"{", "is cut short: its header needs 28 bytes, the file has 9"),
        (struct.pack("<Q", 8) + b"{broken}", "has a damaged safetensors header"),
        (struct.pack("<Q", 8) + b'{"a":{}}', "has a damaged safetensors header"),
        (header({"__metadata__": {"unclip": 5}}), "has a damaged safetensors header (metadata that is not"),
        (header({"__metadata__": [1]}), "has a damaged safetensors header"),
        (header({"__metadata__": None}), "is a safetensors file, but not one of unclip's"),
        (header({"a": {**TENSOR, "dtype": ["F32"]}}), "(a tensor of type ['F32'] and shape [2])"),
        (header({"a": {**TENSOR, "shape": [-2]}}), "(a tensor of type 'F32' and shape [-2])"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "has a damaged safetensors header"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        read_header(path)


def test_a_file_cut_short_is_named(saved) -> None:
    size = saved.stat().st_size
    with saved.open("r+b") as file:
        file.truncate(size - 1000)
    with pytest.raises(
        ValueError, match=f"is cut short: its tensors need {size:,} bytes, the file has {size - 1000:,}"
    ):
        load_stage(saved)


def test_other_safetensors_files_are_named(tmp_path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is a safetensors file, but not one of unclip's"):
        load_stage(tmp_path / "x.safetensors")


def test_missing_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'x.safetensors'}: there is no such file")):
        load_stage(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is a folder; expected a .safetensors file")):
        load_stage(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "is in version 2 of the format, this unclip reads version 1; update unclip"),
        ({"format": None}, "its format is None, expected 1"),
        ({"stage": "vae"}, "holds the stage 'vae' as a network 'unet', which this version does not know"),
        ({"network": "mamba"}, "holds the stage 'decoder' as a network 'mamba'"),
        ({"network": "clip"}, "holds the stage 'decoder' as a network 'clip'"),
        ({"space": None}, "space is missing, which a decoder needs"),
        ({"diffusion": None}, "diffusion is missing, which a decoder needs"),
        (
            {"diffusion": {"prediction": "w"}},
            "diffusion.prediction: found 'w', expected one of 'eps', 'x0', 'v'",
        ),
        ({"config": None}, "config: expected a table of UNetConfig fields, found None"),
        ({"config": {"image_size": 16, "new": 1}}, "config: unknown field new for UNetConfig"),
        ({"config": {"image_size": 15}}, "image_size 15 is not a multiple of 2"),
    ],
)
def test_headers_that_cannot_be_read_are_named(saved, changes: dict, message: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=re.escape(f"{saved}: ") + ".*" + re.escape(message)):
        load_stage(saved)


UNET = {"image_size": 16, "channels": 32, "attention": [8], "res_blocks": [1, 1]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 0}, "head_dim is 0, expected more than 0"),
        ({"patch_size": 0}, "patch_size is 0, expected more than 0"),
        ({"channels": -32}, "channels is -32, expected more than 0"),
        ({"channels": 32 * 10**9}, "channels is 32000000000, expected at most 65,536"),
        ({"in_channels": -1}, "in_channels is -1, expected more than 0"),
        ({"concat_channels": -3}, "concat_channels is -3, expected more than 0"),
        ({"channel_mult": [1, 0]}, "channel_mult is (1, 0), expected more than 0"),
        ({"res_blocks": [10**6, 1]}, "res_blocks is (1000000, 1), expected at most 100"),
        ({"res_blocks": [1] * 99, "channel_mult": [1] * 99}, "number of levels is 99, expected at most 16"),
        ({"conditioning": {"clip_dim": -8}}, "clip_dim is -8, expected more than 0"),
        ({"conditioning": {"clip_dim": 8, "clip_tokens": 10**9}}, "clip_tokens is 1000000000, expected at m"),
    ],
)
def test_sizes_of_a_decoder_that_cannot_be_are_named(saved, config: dict, message: str) -> None:
    rewrite(saved, config=UNET | config)
    with pytest.raises(ValueError, match=re.escape(f"{saved}: ") + ".*" + re.escape(message)):
        load_stage(saved)


@pytest.mark.parametrize(
    ("stage", "config", "message"),
    [
        ("prior", {"layers": 10**9}, "layers is 1000000000, expected at most 1,000"),
        ("prior", {"mlp_ratio": math.inf}, "mlp_ratio is inf, expected at most 1,000"),
        ("prior", {"width": 10**15}, "width is 1000000000000000, expected at most 1,000,000"),
        ("ar_prior", {"buckets": 10**12}, "buckets is 1000000000000, expected at most 1,000,000"),
        ("clip", {"text": {"width": 32, "heads": 1, "layers": 10**9}}, "text.layers is 1000000000, expected"),
        (
            "clip",
            {"text": {"width": 32, "heads": 1, "layers": 1, "context_length": 10**6}},
            "text.context_length is 1000000, expected at most 4,096",
        ),
        ("clip", {"image_mean": [math.nan, 0, 0]}, "image_mean is nan, expected a finite number"),
    ],
)
def test_sizes_of_transformers_that_cannot_be_are_named(bundle, tmp_path, stage, config, message) -> None:
    """At once, whatever they say: nothing is built from them."""
    path = save_stage(getattr(bundle, stage), tmp_path / "x.safetensors")
    rewrite(path, config=read_json_header(path)["config"] | config)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        load_stage(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_size": 64}, "low_size: found 64, expected a whole fraction of the 32 pixels"),
        ({"low_size": 5}, "low_size: found 5, expected a whole fraction"),
        ({"diffusion": {"num_timesteps": 0}}, "num_timesteps is 0, expected 1 to 100,000"),
        ({"diffusion": {"num_timesteps": 10**10}}, "num_timesteps is 10000000000, expected 1 to 100,000"),
        ({"diffusion": {"clip_x0": -1.0}}, "clip_x0 is -1.0, expected a finite number above 0"),
        ({"recipe": {"noise_scale": math.nan}}, "noise_scale is nan, expected a finite number above 0"),
        ({"recipe": {"noise_level": 2.0}}, "noise_level is 2.0, expected 0 to 1"),
    ],
)
def test_settings_of_an_upsampler_that_cannot_be_are_named(bundle, tmp_path, changes, message) -> None:
    path = save_stage(bundle.upsamplers[0], tmp_path / "u.safetensors")
    assert bundle.upsamplers[0].network.config.image_size == 32
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_stage(path)


def test_a_header_that_is_not_json_is_named(saved) -> None:
    tensors = load(saved.read_bytes())  # not mapped from the file that is written over
    for content in ("{", "[" * 100_000):
        save_file(tensors, saved, {"unclip": content})
        with pytest.raises(ValueError, match=re.escape(f"{saved}: its metadata is not JSON")):
            load_stage(saved)


def test_upsamplers_need_their_input_size(bundle, tmp_path) -> None:
    path = save_stage(bundle.upsamplers[0], tmp_path / "u.safetensors")
    rewrite(path, timesteps=["first"])
    with pytest.raises(ValueError, match=r"timesteps: found \['first'\], expected a list of whole numbers"):
        load_stage(path)
    for low_size in (None, 0):
        rewrite(path, low_size=low_size)
        with pytest.raises(ValueError, match=f"low_size: found {low_size}, expected the input size in pixe"):
            load_stage(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("conv_in.weight"),
            "lacks conv_in.weight; expected {n} tensors for its config, found {m}",
        ),
        (
            lambda t: t.update(extra=torch.zeros(1)),
            "holds extra, which its config has no place for; expected {n} tensors, found {m}",
        ),
        (
            lambda t: t.update({"conv_in.weight": torch.zeros(32, 4, 3, 3)}),
            "conv_in.weight has shape [32, 4, 3, 3], expected [32, 3, 3, 3] for its config",
        ),
    ],
)
def test_every_key_and_shape_is_checked(saved, change, message: str) -> None:
    tensors = load(saved.read_bytes())
    n = len(tensors)
    change(tensors)
    save_file(tensors, saved, {"unclip": json.dumps(read_json_header(saved))})
    message = message.format(n=n, m=len(tensors))
    with pytest.raises(ValueError, match=re.escape(f"{saved}: {message}")):
        load_stage(saved)


def test_incomplete_sets_of_shards_are_named(bundle, tmp_path) -> None:
    index = save_stage(bundle.decoder, tmp_path / "x.safetensors", max_shard_bytes=SHARD_BYTES)
    shard = sorted(tmp_path.glob("x-*"))[1]
    content, listing = shard.read_bytes(), index.read_text()

    shard.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{index}: the shard {shard.name} is missing")):
        load_stage(index)

    shard.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=re.escape(f"{shard}: is cut short")):
        load_stage(index)

    save_stage(tiny_bundle(seed=1).decoder, tmp_path / "other" / "x.safetensors", max_shard_bytes=SHARD_BYTES)
    shard.write_bytes((tmp_path / "other" / shard.name).read_bytes())
    with pytest.raises(ValueError, match=re.escape(f"{shard}: belongs to another save than its index")):
        load_stage(index)
    shard.write_bytes(content)

    changed = json.loads(listing)
    name = next(key for key, file in changed["weight_map"].items() if file == shard.name)
    changed["weight_map"].pop(name)
    index.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=re.escape(f"{shard}: has the unlisted tensor {name!r}")):
        load_stage(index)

    changed["weight_map"] = {"a": "../x.safetensors"}
    index.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="shards must lie beside their index"):
        load_stage(index)

    for content in ('{"metadata": {}}', '{"weight_map": {"a": 5}}', '{"weight_map": "a"}'):
        index.write_text(content)
        with pytest.raises(ValueError, match=re.escape(f"{index}: is not an index of shards")):
            load_stage(index)

    index.unlink()
    with pytest.raises(
        ValueError, match=re.escape(f"{shard}: is shard 2 of ") + ".*index x.safetensors.index.json"
    ):
        load_stage(shard)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"format": 9}', "is in version 9 of the format"),
        ("[]", "its format is None, expected 1"),
        (
            '{"format": 1, "stages": {}}',
            "stages is {}, expected files for some of clip, prior, ar_prior, decoder, decoder_text, ups",
        ),
        ('{"format": 1, "stages": {"vae": "x"}}', "stages is {'vae': 'x'}"),
        (
            '{"format": 1, "stages": {"clip": "../c.safetensors"}}',
            "clip names '../c.safetensors', expected a file in",
        ),
        ('{"format": 1, "stages": {"clip": ""}}', "clip names '', expected a file in"),
        ('{"format": 1, "stages": {"clip": ["c.safetensors"]}}', "clip names ['c.safetensors']"),
        ('{"format": 1, "stages": {"clip": "c.safetensors"}}', "c.safetensors: there is no such file"),
    ],
)
def test_bundles_that_cannot_be_read_are_named(tmp_path, content: str, message: str) -> None:
    (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_bundle(tmp_path)


def test_missing_bundles_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: has no bundle.json")):
        load_bundle(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere: does not exist; expected a folder with bundle\.json"):
        load_bundle(tmp_path / "nowhere")
    (tmp_path / "clip.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"clip\.safetensors: is a file; expected a folder with b"):
        load_bundle(tmp_path / "clip.safetensors")


def test_a_disk_that_is_full_is_told_and_leaves_nothing(bundle, tmp_path, monkeypatch) -> None:
    def full(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"begun")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors_io, "save_file", full)
    path = tmp_path / "prior.safetensors"
    with pytest.raises(OSError, match=r"prior\.safetensors: cannot be written \(I/O error: No space left"):
        save_stage(bundle.prior, path)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_with_the_wrong_file_or_space_is_named(bundle, tmp_path) -> None:
    save_bundle(bundle, tmp_path)
    save_stage(tiny_bundle(space_id="other").prior, tmp_path / "prior.safetensors")
    message = f"{tmp_path / 'prior.safetensors'}: this stage is in the CLIP space 'other'"
    with pytest.raises(ValueError, match=re.escape(message) + ".*'unclip/tiny'"):
        load_bundle(tmp_path)
    save_stage(bundle.decoder, tmp_path / "prior.safetensors")
    with pytest.raises(ValueError, match="holds a decoder, but a prior is expected here"):
        load_bundle(tmp_path)


def test_a_prior_of_the_other_kind_is_named(bundle, tmp_path) -> None:
    save_bundle(bundle, tmp_path)
    save_stage(bundle.ar_prior, tmp_path / "prior.safetensors")
    with pytest.raises(ValueError, match=r"prior is .*prior\.safetensors, which is not diffusion; name it"):
        load_bundle(tmp_path)
    with pytest.raises(
        ValueError, match="ar_prior is DiffusionPrior, which is not autoregressive; name it as"
    ):
        save_bundle(replace(bundle, ar_prior=bundle.prior), tmp_path / "b")


def test_what_cannot_be_saved_is_named(bundle, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"the name of a checkpoint must end in \.safetensors"):
        save_stage(bundle.decoder, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="a prior with a UNet cannot be saved"):
        save_stage(replace(bundle.prior, network=bundle.decoder.network), tmp_path / "x.safetensors")
    twice = Bundle("b", upsamplers=(bundle.upsamplers[0],) * 2)
    with pytest.raises(ValueError, match="two upsamplers of the same size"):
        save_bundle(twice, tmp_path / "b")
    assert native.MAX_SHARD_BYTES == 16_000_000
