"""Timesteps for few steps in the description of a folder: written, read, kept, refused where wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unclip.core.diffusion.spec import FoundSteps
from unclip.core.formats.few_steps import decoder_folder, read_few_steps, write_few_steps
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.formats.native.checkpoints import load_bundle, load_stage, save_bundle, save_stage
from unclip.core.formats.native.header import describe
from unclip.core.stages import Bundle

from ...helpers import karlo
from ...helpers.bundle import tiny_bundle

FOUND = (FoundSteps("ddim", (100, 700, 999)), FoundSteps("unipc", (0, 999)))
OTHER = (FoundSteps("ddim", (3, 999)),)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    whole = tiny_bundle()
    return Bundle("few", decoder=whole.decoder)


@pytest.fixture
def folder(bundle, tmp_path) -> Path:
    return save_bundle(bundle, tmp_path / "few")


def test_a_bundle_says_them_in_its_json(folder) -> None:
    before = json.loads((folder / "bundle.json").read_text())
    assert load_any_bundle(folder).decoder.diffusion.few_steps == ()
    weights = (folder / "decoder.safetensors").read_bytes()
    assert write_few_steps(folder, FOUND) == folder / "bundle.json"
    text = (folder / "bundle.json").read_text()
    # What was found for a number of steps is a line of its own.
    assert [line.split('"')[3] for line in text.splitlines() if "timesteps" in line] == ["ddim", "unipc"]
    assert {key: value for key, value in json.loads(text).items() if key != "few_steps"} == before
    assert (folder / "decoder.safetensors").read_bytes() == weights
    assert [each.name for each in folder.iterdir() if each.name.startswith(".")] == []
    # As a bundle, and its decoder alone, by its name or that of an index.
    assert read_few_steps(folder) == FOUND
    assert load_any_bundle(folder).decoder.diffusion.few_steps == FOUND
    assert load_any_stage(folder / "decoder.safetensors", expect="decoder").diffusion.few_steps == FOUND


def test_of_a_decoder_in_shards(bundle, tmp_path) -> None:
    folder = save_bundle(bundle, tmp_path / "few", max_shard_bytes=100_000)
    index = folder / "decoder.safetensors.index.json"
    assert index.is_file()
    write_few_steps(folder, FOUND)
    assert load_any_stage(index, expect="decoder").diffusion.few_steps == FOUND


def test_saving_keeps_them_and_json_stands_above_the_file(folder, tmp_path) -> None:
    write_few_steps(folder, FOUND)
    loaded = load_any_bundle(folder)
    copy = save_bundle(loaded, tmp_path / "copy")
    for found in (load_any_bundle(copy), load_bundle(copy)):
        assert found.decoder.diffusion == loaded.decoder.diffusion
        assert found.decoder.diffusion.few_steps == FOUND
    write_few_steps(copy, OTHER)
    assert load_any_bundle(copy).decoder.diffusion.few_steps == OTHER
    alone = save_stage(loaded.decoder, tmp_path / "alone.safetensors")
    assert load_any_stage(alone).diffusion.few_steps == FOUND


def test_files_without_them_are_as_before(bundle, folder) -> None:
    assert "few_steps" not in describe(bundle.decoder)["diffusion"]
    assert "few_steps" not in (folder / "bundle.json").read_text()
    assert load_stage(folder / "decoder.safetensors").diffusion == bundle.decoder.diffusion
    with_some = replace(bundle.decoder, diffusion=replace(bundle.decoder.diffusion, few_steps=FOUND))
    assert len(describe(with_some)["diffusion"]["few_steps"]) == 2


def test_another_file_in_the_folder_of_a_bundle_has_none(bundle, folder) -> None:
    write_few_steps(folder, FOUND)
    other = save_stage(bundle.decoder, folder / "other.safetensors")
    assert load_any_stage(other).diffusion.few_steps == ()


def test_a_model_of_another_layout_has_them_in_a_file_of_ours(tmp_path) -> None:
    published = karlo.save_as_published(karlo.tiny_pipeline(), tmp_path / "karlo")
    found = (FoundSteps("ddim", (50, 999)),)
    assert decoder_folder(published) == published
    assert write_few_steps(published, found) == published / "unclip.json"
    assert load_any_bundle(published).decoder.diffusion.few_steps == found
    assert load_any_stage(published, expect="decoder").diffusion.few_steps == found
    assert load_any_stage(published / "decoder").diffusion.few_steps == found
    (weights,) = (published / "decoder").glob("*.safetensors")
    assert load_any_stage(weights).diffusion.few_steps == found
    # Of a folder of such models it is that of the one with the decoder.
    assert decoder_folder(tmp_path) == published
    assert load_any_bundle(tmp_path).decoder.diffusion.few_steps == found


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ([[1, 2]], "expected a table of _Described fields"),
        ({"prior": []}, "unknown field prior"),
        ({"decoder": [{"sampler": "ddim", "timesteps": [5, 2]}]}, "expected ascending ones"),
        ({"decoder": [{"sampler": "ddim", "timesteps": [5, 2000]}]}, "few_steps has the timestep 2000"),
        ({"decoder": [{"sampler": "ddim", "timesteps": "all"}]}, "found 'all', expected a list"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_its_file(folder, said, problem: str) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "few_steps": said}))
    with pytest.raises(ValueError, match=problem) as error:
        load_any_bundle(folder)
    assert str(path) in str(error.value)


def test_a_description_that_cannot_be_written_stays_whole(folder, monkeypatch) -> None:
    before = (folder / "bundle.json").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_few_steps(folder, FOUND)
    assert (folder / "bundle.json").read_text() == before
    assert torch.isfinite(next(load_bundle(folder).decoder.network.parameters())).all()
