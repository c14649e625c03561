"""How weights may lie in a PyTorch file: packed, under any name, of any protocol, behind prefixes."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from unclip.core.formats.files import safetensors_io, torch_pickle
from unclip.core.formats.files.source import open_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.full((40,), 0.5)}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[n], TENSORS[n]) for n in TENSORS)


def saved(path: Path, **options) -> Path:
    torch.save(TENSORS, path, **options)
    return path


def packed(path: Path, compression: int, change=lambda name, content: content) -> Path:
    """The file packed again, as another tool does it."""
    whole = saved(path.with_name("whole.pt"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_packed_archive_has_the_tensors_of_the_file(tmp_path: Path, compression: int) -> None:
    assert same(dict(open_weights(packed(tmp_path / "best.pth", compression)).tensors()))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_torch_cannot_unpack_is_named(tmp_path: Path, compression: int) -> None:
    path = packed(tmp_path / "best.pth", compression)
    with pytest.raises(ValueError, match=re.escape(f"{path}: its part") + ".*pack it again without compres"):
        open_weights(path)


def test_only_what_lies_in_the_file_as_it_is_is_mapped(tmp_path: Path) -> None:
    assert torch_pickle._can_be_mapped(saved(tmp_path / "x.pt"))
    assert not torch_pickle._can_be_mapped(packed(tmp_path / "packed.pt", zipfile.ZIP_DEFLATED))
    assert not torch_pickle._can_be_mapped(saved(tmp_path / "o.pt", _use_new_zipfile_serialization=False))


@pytest.mark.parametrize("name", ["prior.safetensors", "prior.SAFETENSORS", "prior.model", "prior"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_may_have_any_name(tmp_path: Path, name: str, zipped: bool) -> None:
    assert same(dict(open_weights(saved(tmp_path / name, _use_new_zipfile_serialization=zipped)).tensors()))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read_or_named(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path = saved(tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    if protocol == 2 or (protocol == 3 and zipped):
        assert same(dict(open_weights(path).tensors()))
        return
    with pytest.raises(ValueError, match=f"saved with the pickle protocol {protocol}, an unusual one"):
        open_weights(path)


def test_a_pickle_that_ends_inside_a_number_is_damaged(tmp_path: Path) -> None:
    def cut(name: str, content: bytes) -> bytes:
        return content[: content.index(b"X", 20) + 2] if name.endswith("data.pkl") else content

    path = packed(tmp_path / "cut.pt", zipfile.ZIP_STORED, cut)
    with pytest.raises(ValueError, match=re.escape(f"{path}: is cut short or damaged")):
        open_weights(path)


def test_a_file_that_asks_for_too_much_memory_is_named(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    path = saved(tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(ValueError, match=re.escape(f"{path}: asks for more memory than there is")):
        open_weights(path)


def test_tensors_without_values_are_named(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, device="meta")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: a.weight has no values, only a shape"):
        open_weights(tmp_path / "x.pt")


def test_a_shape_that_does_not_fit_its_bytes_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content.replace(b'"shape":[2,3]', b'"shape":[9,9]'))
    with pytest.raises(ValueError, match=r"x.safetensors: has a damaged .* \(F32 of shape \[9, 9\] in 24 by"):
        open_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_more_tensors_than_any_network_has_are_refused_at_once(tmp_path: Path, monkeypatch, suffix) -> None:
    monkeypatch.setattr(safetensors_io, "MAX_TENSORS", 3)
    path = tmp_path / f"x.{suffix}"
    for count in (3, 4):
        content = {f"layers.{index}.weight": torch.zeros(1) for index in range(count)}
        torch.save(content, path) if suffix == "pt" else save_file(content, path)
        if count == 3:
            assert len(open_weights(path).shapes) == 3
            continue
        with pytest.raises(ValueError, match=re.escape(f"{path}: holds 4 tensors, expected at most 3.")):
            open_weights(path)


# --- prefixes ---

PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_trainers_put_in_front_is_taken_off(tmp_path: Path, prefix: str, suffix: str) -> None:
    state = {prefix + name: value for name, value in TENSORS.items()}
    path = tmp_path / f"epoch_1.{suffix}"
    torch.save({"epoch": 1, "state_dict": state}, path) if suffix == "pt" else save_file(state, path)
    source = open_weights(path)
    assert same(dict(source.tensors()))
    assert same({name: source.tensor(name) for name in TENSORS})
    assert source.shapes["a.weight"] == (2, 3)


def test_a_compiled_part_has_the_names_of_the_part(tmp_path: Path) -> None:
    torch.save({"a._orig_mod.weight": TENSORS["a.weight"], "b.bias": TENSORS["b.bias"]}, tmp_path / "x.pt")
    assert same(dict(open_weights(tmp_path / "x.pt").tensors()))


def test_a_prefix_that_only_some_have_belongs_to_the_names(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "x.pt")
    assert set(open_weights(tmp_path / "x.pt").shapes) == set(state)
    twice = {"a._orig_mod.b": torch.ones(1), "a.b": torch.zeros(1)}  # one name would be lost
    torch.save(twice, tmp_path / "y.pt")
    assert set(open_weights(tmp_path / "y.pt").shapes) == set(twice)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_the_prefix_of_a_sharded_model_is_taken_off(tmp_path: Path, suffix: str) -> None:
    names = {f"module.{name}": f"m-{n:05d}-of-00002.{suffix}" for n, name in enumerate(TENSORS, 1)}
    for name, file in names.items():
        content = {name: TENSORS[name.removeprefix("module.")]}
        (torch.save if suffix == "bin" else save_file)(content, tmp_path / file)
    index = tmp_path / f"m.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert same(dict(open_weights(index).tensors()))
