"""Checkpoint files of others: how they are opened, and what is said of those that cannot be."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from unclip.core.formats.detect import identify
from unclip.core.formats.files import torch_pickle
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.files.weight_source import join_sources, source_of_tensors
from unclip.core.formats.load import load_any_stage

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.ones(2, dtype=torch.float16),
    "n": torch.tensor(3),
}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = TENSORS) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


# --- files that can be opened ---

WAYS = {
    "x.safetensors": lambda path: save_file(TENSORS, path),
    "x.ckpt": lambda path: torch.save({"state_dict": TENSORS, "epoch": 3}, path),
    "x.pt": lambda path: torch.save(TENSORS, path),
    "x.pth": lambda path: torch.save({"model": {"state_dict": TENSORS}, "epoch": 3, "optimizer": {}}, path),
    "old.bin": lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
    "parameters.pt": lambda path: torch.save({k: v.clone() for k, v in TENSORS.items()}, path),
    "misnamed.ckpt": lambda path: save_file(TENSORS, path),
}


@pytest.mark.parametrize("name", WAYS)
def test_weights_are_found_in_every_kind_of_file(tmp_path, name: str) -> None:
    path = tmp_path / name
    WAYS[name](path)
    source = open_weights(path)
    assert source.path == path
    assert set(source.shapes) == set(TENSORS)
    assert source.shapes["a.weight"] == (2, 3)
    assert source.dtypes["a.bias"] == torch.float16
    assert same(dict(source.tensors()))
    assert [key for key, _ in source.tensors(["n"])] == ["n"]
    assert torch.equal(source.tensor("a.weight"), TENSORS["a.weight"])
    with pytest.raises(ValueError, match=re.escape(f"{path}: has no tensor 'b'")):
        source.tensors(["a.bias", "b"])


def test_what_lies_beside_the_weights_is_kept(tmp_path) -> None:
    torch.save({"state_dict": {**TENSORS, "step": 5}, "epoch": 3}, tmp_path / "x.ckpt")
    assert open_weights(tmp_path / "x.ckpt").metadata == {"epoch": 3, "step": 5}


def test_a_tuple_of_tensors_has_numbers_for_names(tmp_path) -> None:
    torch.save((torch.zeros(3), torch.ones(3)), tmp_path / "stats.th")
    assert open_weights(tmp_path / "stats.th").shapes == {"0": (3,), "1": (3,)}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mapped files")
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_tensors_stay_mapped_from_the_file(tmp_path, name: str) -> None:
    path = tmp_path / name
    WAYS[name](path)
    tensor = open_weights(path).tensor("a.weight")
    regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    bounds = [[int(number, 16) for number in region[0].split("-")] for region in regions]
    inside = [
        region[-1]
        for region, (low, high) in zip(regions, bounds, strict=True)
        if low <= tensor.data_ptr() < high
    ]
    assert inside == [str(path)]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_of_hugging_face_are_one_source(tmp_path, suffix: str, variant: str) -> None:
    kind = f".{variant}" if variant else ""
    index = tmp_path / f"model.{suffix}.index{kind}.json"
    write_shards(index, suffix, kind)
    source = open_weights(index)
    assert source.path == index
    assert same(dict(source.tensors()))
    assert list(dict(source.tensors(["n"]))) == ["n"]


def write_shards(index: Path, suffix: str, kind: str = "") -> dict[str, str]:
    names = {f"model{kind}-{number:05d}-of-00002.{suffix}": None for number in (1, 2)}
    first, second = names
    content = {first: ["a.weight"], second: ["a.bias", "n"]}
    for name, keys in content.items():
        shard = {key: TENSORS[key] for key in keys}
        if suffix == "bin":
            torch.save(shard, index.with_name(name))
        else:
            save_file(shard, index.with_name(name))
    weight_map = {key: name for name, keys in content.items() for key in keys}
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))
    return weight_map


def test_several_sources_are_one_behind_prefixes() -> None:
    part = source_of_tensors(Path("x"), {"bias": torch.zeros(3)}, {"epoch": 1})
    both = join_sources(Path("y"), [("first.", part), ("", source_of_tensors(Path("z"), TENSORS))])
    assert (both.path, both.metadata) == (Path("y"), {"epoch": 1})
    assert set(both.shapes) == {"first.bias", *TENSORS}
    assert torch.equal(both.tensor("first.bias"), torch.zeros(3))
    assert [name for name, _ in both.tensors(["n", "first.bias"])] == ["first.bias", "n"]


# --- files that cannot ---


class Code:
    """Runs when it is unpickled, if anything is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, zipped: bool) -> None:
    path, trace = tmp_path / "x.ckpt", tmp_path / "it ran"
    content = {"state_dict": TENSORS, "callback": Code(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=re.escape(f"{path}: holds Python objects")) as error:
        open_weights(path)
    assert "nothing of it was run" in str(error.value)
    assert ".safetensors" in str(error.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Code(trace)))
    assert trace.exists()  # it would have


def test_a_bare_pickle_is_no_checkpoint_and_not_run(tmp_path) -> None:
    path, trace = tmp_path / "x.pt", tmp_path / "it ran"
    path.write_bytes(pickle.dumps(Code(trace)))
    with pytest.raises(ValueError, match=re.escape(f"{path}: is not a checkpoint")):
        open_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"",
            "is not a checkpoint (the file is empty); expected a .safetensors, .ckpt, .pt, .pth or .bin file",
        ),
        (b"once upon a time there was a fox", "is not a checkpoint (it looks like a text file)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "(it looks like a Git LFS pointer"),
        (b"<!doctype html><html><body>", "(it looks like a web page)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "(it looks like a picture)"),
        (b"GGUF" + bytes(30), "(it looks like a GGUF file"),
        (bytes(40), "is not a checkpoint; expected"),
        (b"PK\x03\x04" + bytes(60), "is cut short or damaged: a PyTorch file is a zip archive"),
    ],
)
def test_other_files_are_named(tmp_path, content: bytes, message: str) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        open_weights(path)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *((name, share) for name in ("x.safetensors", "x.ckpt") for share in (0.3, 0.7, 0.95)),
        ("old.bin", 0.95),
    ],
)
def test_files_cut_short_are_named(tmp_path, name: str, share: float) -> None:
    path = tmp_path / name
    WAYS[name](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=re.escape(f"{path}: is cut short")):
        dict(open_weights(path).tensors())


def test_a_damaged_pickle_is_not_taken_for_objects(tmp_path) -> None:
    path = tmp_path / "old.bin"
    WAYS[path.name](path)
    content = bytearray(path.read_bytes())
    content[content.index(b"}")] = 255  # no instruction of a pickle
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"old\.bin: is cut short or damaged: .*\(Unsupported operand 255\)"):
        open_weights(path)


def test_a_zip_archive_without_a_model_is_named(tmp_path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=re.escape(f"{path}: is cut short or damaged: it cannot be read")):
        open_weights(path)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no tensors by name (a dict with epoch)"),
        ([1, 2], "holds no tensors by name (a dict with 0, 1)"),
        ("text", "holds no tensors by name (str)"),
        ({"w": torch.eye(3).to_sparse()}, "w is sparse_coo; expected plain (dense) tensors"),
    ],
)
def test_files_without_weights_are_named(tmp_path, content: object, message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        open_weights(path)


def test_missing_files_and_folders_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'x.ckpt'}: there is no such file")):
        open_weights(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is a folder; expected")):
        load_any_stage(tmp_path)


def test_damaged_sets_of_shards_are_named(tmp_path) -> None:
    index = tmp_path / "model.bin.index.json"
    weight_map = write_shards(index, "bin")
    second = tmp_path / weight_map["n"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "b": second.name}}))
    with pytest.raises(ValueError, match=re.escape(f"{index}: index and shards differ in 'b'")):
        open_weights(index)
    torch.save(TENSORS, second)
    with pytest.raises(ValueError, match=re.escape(f"{index}: its shards hold a tensor twice")):
        open_weights(index)
    second.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{index}: the shard {second.name} is missing")):
        open_weights(index)
    for elsewhere in ("../x.bin", "", "."):
        index.write_text(json.dumps({"weight_map": {"a": elsewhere}}))
        with pytest.raises(ValueError, match="shards must lie beside their index"):
            open_weights(index)
    index.write_text("[]")
    with pytest.raises(ValueError, match=re.escape(f"{index}: is not an index of shards")):
        open_weights(index)


def test_wrappers_do_not_nest_without_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch_pickle, "_MAX_DEPTH", 2)
    torch.save({"model": {"model": {"model": TENSORS}}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        open_weights(tmp_path / "x.pt")


# --- checkpoints of other systems ---

OTHERS = {
    "a LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "x.alpha"],
    "a LoRA, a small change": ["unet.down_blocks.0.attentions.0.to_k.lora_A.weight"],
    "a Stable Diffusion checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"],
    "a Stable Diffusion 2.1 unCLIP checkpoint": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight",
        "noise_augmentor.data_mean",
    ],
    "a VAE": ["encoder.conv_in.weight", "decoder.conv_in.weight"],
    "a ControlNet": ["control_model.input_blocks.0.0.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "an upscaling network": ["body.0.rdb1.conv1.weight"],
    "a textual inversion": ["emb_params"],
    "a diffusion transformer": ["double_blocks.0.img_attn.qkv.weight"],
    "an IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "the U-Net of a latent diffusion model": [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    ],
}


@pytest.mark.parametrize("what", OTHERS)
def test_checkpoints_of_other_systems_are_told_where_they_belong(tmp_path, what: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(1) for name in OTHERS[what]}, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: is {what}")) as error:
        load_any_stage(path)
    remedies = ("put it into models/", "Put it into models/", "choose the prior")
    assert any(remedy in " ".join(str(error.value).split()) for remedy in remedies)


def test_an_unknown_checkpoint_is_told_what_is_known(tmp_path) -> None:
    source = source_of_tensors(tmp_path / "x.pt", TENSORS)
    with pytest.raises(
        ValueError, match=r"is not a checkpoint that unclip knows: 3 tensors \(a.weight, a.bias"
    ):
        identify(source)
