from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from unclip.core.formats import native, safetensors_io
from unclip.core.formats.assemble import assemble
from unclip.core.formats.native import (
    load_bundle,
    load_stage,
    read_bundle,
    read_header,
    save_bundle,
    save_stage,
)
from unclip.core.stages import Bundle

from .helpers_bundle import tiny_bundle

SHARD_BYTES = 400_000  # a few tensors in each


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle()


@pytest.fixture
def saved(bundle, tmp_path) -> Path:
    """A decoder in one file."""
    return save_stage(bundle.decoder, tmp_path / "decoder.safetensors")


def stages(bundle: Bundle) -> dict:
    return {
        "clip": bundle.clip,
        "prior": bundle.prior,
        "ar_prior": bundle.ar_prior,
        "decoder": bundle.decoder,
        "upsampler": bundle.upsamplers[0],
    }


def rewrite(path: Path, **changes) -> None:
    """Save the file again with changed fields in its header; None removes one."""
    header = read_json_header(path)
    header.update(changes)
    header = {key: value for key, value in header.items() if value is not None}
    save_file(load_file(path), path, {"unclip": json.dumps(header)})


def read_json_header(path: Path) -> dict:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["unclip"])


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    state, reference = found.state_dict(), expected.state_dict()
    assert list(state) == list(reference)
    assert all(torch.equal(state[name], reference[name]) for name in reference)


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
    assert header.parameters == sum(value.numel() for value in bundle.decoder.network.state_dict().values())
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
        (b"", "is not a safetensors file; expected a checkpoint saved as .safetensors"),
        (struct.pack("<Q", 20) + b"{", "is cut short: its header needs 28 bytes, the file has 9"),
        (struct.pack("<Q", 8) + b"{broken}", "has a damaged safetensors header"),
        (struct.pack("<Q", 8) + b'{"a":{}}', "has a damaged safetensors header"),
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


def test_a_header_that_is_not_json_is_named(saved) -> None:
    save_file(load_file(saved), saved, {"unclip": "{"})
    with pytest.raises(ValueError, match="its metadata is not JSON"):
        load_stage(saved)


def test_upsamplers_need_their_input_size(bundle, tmp_path) -> None:
    path = save_stage(bundle.upsamplers[0], tmp_path / "u.safetensors")
    rewrite(path, timesteps=["first"])
    with pytest.raises(ValueError, match=r"timesteps: found \['first'\], expected a list of whole numbers"):
        load_stage(path)
    rewrite(path, low_size=None)
    with pytest.raises(ValueError, match="low_size: found None, expected the input size in pixels"):
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
    tensors = load_file(saved)
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

    index.write_text('{"metadata": {}}')
    with pytest.raises(ValueError, match=re.escape(f"{index}: is not an index of safetensors shards")):
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
        ('{"format": 9}', "is in version 9 of the format"),
        ("[]", "its format is None, expected 1"),
        (
            '{"format": 1, "stages": {}}',
            "stages is {}, expected files for some of clip, prior, ar_prior, decoder, upsamplers",
        ),
        ('{"format": 1, "stages": {"vae": "x"}}', "stages is {'vae': 'x'}"),
        (
            '{"format": 1, "stages": {"clip": "../c.safetensors"}}',
            "clip names '../c.safetensors', expected a file in",
        ),
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
