"""The native format: stages and bundles come back as they were saved, whole or in shards."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from unclip.core import writing
from unclip.core.formats.files import safetensors_io
from unclip.core.formats.mapping.assembling import assemble
from unclip.core.formats.native.checkpoints import (
    load_bundle,
    load_stage,
    read_bundle,
    read_header,
    save_bundle,
    save_stage,
)
from unclip.core.stages import Bundle

from ...helpers.bundle import tiny_bundle
from ...helpers.native import SHARD_BYTES, assert_same_weights


def stages(bundle: Bundle) -> dict:
    return {
        "clip": bundle.clip,
        "prior": bundle.prior,
        "ar_prior": bundle.ar_prior,
        "decoder": bundle.decoder,
        "upsampler": bundle.upsamplers[0],
    }


@pytest.mark.parametrize("name", ["clip", "prior", "ar_prior", "decoder", "upsampler"])
@pytest.mark.parametrize("shard_bytes", [None, 50_000])
def test_every_stage_comes_back(bundle, tmp_path, name: str, shard_bytes: int | None) -> None:
    stage = stages(bundle)[name]
    if name == "upsampler":
        stage = replace(stage, timesteps=(0, 400, 999))
    written = save_stage(stage, tmp_path / "x.safetensors", max_shard_bytes=shard_bytes)
    assert written.name == ("x.safetensors" if shard_bytes is None else "x.safetensors.index.json")
    found = load_stage(tmp_path / "x.safetensors", expect="prior" if name == "ar_prior" else name)
    assert type(found) is type(stage)
    assert found.network.config == stage.network.config
    assert_same_weights(found.network, stage.network)
    assert found.source == str(written)
    for field in ("space", "diffusion", "low_size", "timesteps"):
        assert getattr(found, field, None) == getattr(stage, field, None)
    assert not found.network.training
    assert not any(value.requires_grad for value in found.network.parameters())
    assert not any(value.is_meta for value in (*found.network.parameters(), *found.network.buffers()))


def test_a_loaded_stage_runs_as_the_saved_one(bundle, tmp_path) -> None:
    save_bundle(bundle, tmp_path)
    found = load_bundle(tmp_path)
    ids = bundle.clip.tokenizer(["a red car"])
    assert torch.equal(found.clip.tokenizer(["a red car"]), ids)
    x, t, z = torch.randn(1, 3, 16, 16), torch.tensor([500]), torch.randn(1, 32)
    for a, b in [
        (found.clip.network.encode_tokens(ids)[2], bundle.clip.network.encode_tokens(ids)[2]),
        (found.clip.network.encode_pixels(x), bundle.clip.network.encode_pixels(x)),
        *[
            (
                stage.network(x, t, stage.network.condition(clip_embedding=z))
                for stage in (found.decoder, bundle.decoder)
            )
        ],
    ]:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtypes", [(None, torch.bfloat16), (torch.bfloat16, None)])
def test_tables_keep_their_precision(bundle, tmp_path, dtypes: tuple) -> None:
    path = save_stage(bundle.ar_prior, tmp_path / "a.safetensors", dtype=dtypes[0])
    found = load_stage(path, dtype=dtypes[1]).network
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}
    tables = dict(bundle.ar_prior.network.named_buffers())
    assert len(tables) == 10
    for name, table in tables.items():
        assert torch.equal(found.get_buffer(name), table)


def test_a_bundle_comes_back(bundle, tmp_path) -> None:
    save_bundle(bundle, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "bundle.json").read_text()) == {
        "format": 1,
        "name": "tiny",
        "stages": {
            "clip": "clip.safetensors",
            "prior": "prior.safetensors",
            "ar_prior": "ar-prior.safetensors",
            "decoder": "decoder.safetensors",
            "upsamplers": ["upsampler-32.safetensors", "upsampler-64.safetensors"],
        },
    }
    name, files = read_bundle(tmp_path / "b")
    assert (name, [path.name for path in files["upsampler"]]) == (
        "tiny",
        ["upsampler-32.safetensors", "upsampler-64.safetensors"],
    )
    assert [path.name for path in files["prior"]] == ["prior.safetensors", "ar-prior.safetensors"]
    found = load_bundle(tmp_path / "b")
    assert found.name == "tiny"
    assert found.prior.diffusion is not None and found.ar_prior.diffusion is None
    assert found.ar_prior.network.config == bundle.ar_prior.network.config
    assert [stage.low_size for stage in found.upsamplers] == [16, 32]
    save_bundle(Bundle("part", decoder=bundle.decoder), tmp_path / "part")
    part = load_bundle(tmp_path / "part")
    assert (part.clip, part.prior, part.upsamplers) == (None, None, ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_on_the_way(bundle, tmp_path, dtype: torch.dtype) -> None:
    path = save_stage(bundle.decoder, tmp_path / "d.safetensors", dtype=torch.float16)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    found = load_stage(path, dtype=dtype).network
    assert {value.dtype for value in found.parameters()} == {dtype}
    expected = bundle.decoder.network.conv_in.weight.half().to(dtype)
    assert torch.equal(found.conv_in.weight, expected)
    assert found.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_shards_stay_within_the_limit_and_old_ones_go(bundle, tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    index = save_stage(bundle.decoder, path, max_shard_bytes=SHARD_BYTES)
    shards = sorted(tmp_path.glob("x-*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size <= SHARD_BYTES for shard in shards)
    content = json.loads(index.read_text())
    assert set(content["weight_map"]) == set(bundle.decoder.network.state_dict())
    assert content["metadata"]["total_size"] == sum(
        v.nbytes for v in bundle.decoder.network.state_dict().values()
    )
    # any of the names leads to the whole
    for name in (shards[1], index, path, tmp_path / "x"):
        assert read_header(name).file.path == index
    save_stage(bundle.decoder, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.safetensors"]
    save_stage(bundle.decoder, path, max_shard_bytes=SHARD_BYTES)
    assert not path.exists()
    assert sorted(tmp_path.glob("x-*.safetensors")) == shards


def test_a_header_tells_everything_without_tensors(bundle, saved) -> None:
    header = read_header(saved)
    assert (header.stage, header.network) == ("decoder", "unet")
    assert header.config == bundle.decoder.network.config
    assert header.diffusion == bundle.decoder.diffusion
    assert header.space == bundle.decoder.space
    state = bundle.decoder.network.state_dict()
    assert {name: info.shape for name, info in header.file.tensors.items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert header.file.tensors["conv_in.weight"].shape == (32, 3, 3, 3)
    assert header.file.tensors["conv_in.weight"].dtype == "F32"
    # the tensors' bytes are not needed for it
    size = saved.stat().st_size
    with saved.open("r+b") as file:
        file.seek(size - 8)
        file.write(b"\xff" * 8)
    assert read_header(saved) == header


def test_networks_are_built_on_the_meta_device_and_tensors_assigned() -> None:
    devices = []

    def build() -> nn.Module:
        network = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 2, 3))
        devices.extend(value.device.type for value in network.parameters())
        return network

    given = {
        name: torch.randn_like(value)
        for name, value in nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 2, 3)).state_dict().items()
    }
    network = assemble(build, {k: tuple(v.shape) for k, v in given.items()}, given.items(), "file")
    assert set(devices) == {"meta"}
    assert network[0].weight.data_ptr() == given["0.weight"].data_ptr()  # not copied


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mapped files")
def test_weights_stay_mapped_from_the_file(saved) -> None:
    stage = load_stage(saved)
    address = stage.network.time_embed[0].weight.data_ptr()
    regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    bounds = [[int(number, 16) for number in region[0].split("-")] for region in regions]
    inside = [
        region[-1] for region, (low, high) in zip(regions, bounds, strict=True) if low <= address < high
    ]
    assert inside == [str(saved)]


def test_a_buffer_lost_on_the_meta_device_is_an_error_of_the_program() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3), persistent=False)

    with pytest.raises(RuntimeError, match=r"Forgetful\.table is in no file"):
        assemble(Forgetful, {}, [], "file")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(bundle, tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.safetensors"
    index = save_stage(bundle.decoder, path, max_shard_bytes=SHARD_BYTES)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    calls = []

    def fails_the_third_time(tensors, target, metadata):
        calls.append(target)
        Path(target).write_bytes(b"half")
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_io, "save_file", fails_the_third_time)
    other = tiny_bundle(seed=1).decoder
    with pytest.raises(OSError, match="No space left"):
        save_stage(other, path, max_shard_bytes=SHARD_BYTES)
    assert len(calls) == 3
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert_same_weights(load_stage(index).network, bundle.decoder.network)


def test_what_a_killed_save_has_written_lies_apart_and_goes_at_the_next(
    bundle, tmp_path, monkeypatch
) -> None:
    """safetensors writes to a file whose name tells nothing, beside the one that it is given."""
    path, save, left = tmp_path / "x.safetensors", safetensors_io.save_file, []

    def leaves_a_file(tensors, target, metadata):
        drawn = Path(target).with_name(".tmpAbCdEf")
        drawn.write_bytes(b"half")
        left.append(drawn)
        save(tensors, target, metadata)

    monkeypatch.setattr(safetensors_io, "save_file", leaves_a_file)
    monkeypatch.setattr(
        safetensors_io.shutil, "rmtree", lambda *_, **__: None
    )  # of a process that was killed
    save_stage(bundle.prior, path)
    assert left[0].exists() and left[0].parent != tmp_path
    monkeypatch.undo()
    dead = left[0].parent.name.replace(f".{os.getpid()}-", ".4194305-")  # of no process
    left[0].parent.rename(tmp_path / dead)
    writing._swept.clear()  # as in a new process
    save_stage(bundle.prior, path)
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_permissions_that_new_files_get(saved, tmp_path) -> None:
    (tmp_path / "plain").touch()
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_weights_that_overflow_are_not_saved(bundle, tmp_path) -> None:
    network = tiny_bundle().decoder.network
    network.conv_in.bias[0] = 1e6
    stage = replace(bundle.decoder, network=network)
    with pytest.raises(
        ValueError, match=r"conv_in\.bias holds NaN or infinite values in torch\.float16; not saved"
    ):
        save_stage(stage, tmp_path / "x.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
