"""What ``--bundle`` names: by a name, by a folder, two of them; the same to every command. And ``--lora``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.cli.bundles import bundle_folder, bundle_folders, bundle_names, path_or_bundle
from unclip.cli.loras import chosen_loras
from unclip.core.formats.native.checkpoints import load_stage
from unclip.nodes import catalogue, host
from unclip.nodes.lora_files import find_lora, list_loras

from ..helpers import published_models as published
from ..helpers.bundle import write_tiny_bundle
from ..helpers.lora import random_layers, write_peft


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def folder(path: Path) -> Path:
    """A folder that claims to be a bundle."""
    path.mkdir(parents=True)
    (path / catalogue.BUNDLE_FILE).write_text("{}")
    return path


# --- folders ---


def test_a_bundle_is_found_by_its_name_its_path_and_from_home(models: Path, tmp_path: Path) -> None:
    named, other = folder(models / "k"), folder(tmp_path / "own" / "k")
    folder(tmp_path / "k")
    assert bundle_folder("k") == named
    assert bundle_folder(str(other)) == other
    assert bundle_folder("~/own/k") == other
    assert bundle_folder("own/k").resolve() == other
    assert bundle_folder("mini") == host.PACK_FOLDER / "models" / "mini"
    with pytest.raises(typer.BadParameter, match="--bundle: found 3; expected one, or a prior and a decoder"):
        bundle_folders(["k"] * 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("karlo", "--bundle: 'karlo' is not here"),
        ("nothing", "--bundle nothing: there is no such bundle or folder; the bundles here are mini"),
        ("~nobody-of-that-name/k", "there is no such bundle or folder"),
        ("empty", "--bundle empty: this folder has no bundle.json"),
    ],
)
def test_what_is_no_bundle_is_told(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        bundle_folder(given)


def test_models_that_are_not_here_may_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "name the folder around it in the variable UNCLIP_MODELS"
    for find, name in (
        (catalogue.find_bundle, "karlo"),
        (catalogue.find_bundle, "k"),
        (catalogue.find_stage_file, "k.safetensors"),
    ):
        with pytest.raises(ValueError, match=hint):
            find(name)
    monkeypatch.setattr(catalogue, "comfyui", lambda: object())
    with pytest.raises(ValueError) as error:
        catalogue.find_bundle("karlo")
    assert "UNCLIP_MODELS" not in str(error.value)


# --- names for the loader node ---


@pytest.mark.parametrize(
    ("beside", "given", "names"),
    [
        ([], ["one/k", "two/k"], ["k", "two/k"]),
        (["two/prior"], ["one/prior", "two/dec"], ["prior", "dec"]),
        (["two/prior", "one/dec"], ["one/prior", "two/dec"], ["prior", "two/dec"]),
        (["models/k"], ["one/k"], ["k"]),
        (["models/k"], ["k", "one/k"], ["k", "one/k"]),
        ([], ["models/group/k"], ["group/k"]),
        ([], ["one/mini"], ["one/mini"]),
    ],
)
def test_names_lead_to_just_the_folders_that_were_given(
    models: Path, tmp_path: Path, beside: list[str], given: list[str], names: list[str]
) -> None:
    for place in dict.fromkeys((*beside, *(each for each in given if "/" in each))):
        folder(tmp_path / place)
    expected = bundle_folders(given)
    assert bundle_names(given) == names
    assert [catalogue.find_bundle(name).resolve() for name in names] == [each.resolve() for each in expected]


def test_no_folder_around_a_bundle_becomes_a_model_folder(models: Path, tmp_path: Path) -> None:
    folder(tmp_path / "one" / "k"), folder(tmp_path / "one" / "other")
    assert bundle_names(["one/k"]) == ["k"]
    assert host.model_folders()[1:] == [models]
    assert catalogue.list_bundles() == ["mini"] and catalogue.first_bundle("other") is None


def test_a_folder_among_the_models_adds_none(models: Path, tmp_path: Path) -> None:
    folder(models / "k")
    assert bundle_names([str(models / "k"), str(host.PACK_FOLDER / "models" / "mini")]) == ["k", "mini"]
    assert host.model_folders()[1:] == [models]


def test_a_folder_that_no_name_leads_to_is_told(tmp_path: Path) -> None:
    strange = folder(tmp_path / "a\\b")
    with pytest.raises(ValueError, match="or its path is none that a workflow can hold; rename the folder"):
        bundle_names([str(strange)])
    assert not host.named_bundles


def test_nothing_beside_what_a_path_names_is_searched(tmp_path: Path, monkeypatch) -> None:
    """Around a bundle or a LoRA may lie a whole home folder, or a whole disk."""
    bundle = write_tiny_bundle(tmp_path / "disk" / "bundles" / "tiny", upsamplers=0)
    lora = tmp_path / "disk" / "loras" / "ink.safetensors"
    (lora.parent / "more").mkdir(parents=True)
    network = load_stage(bundle / "decoder.safetensors").network
    write_peft(random_layers(network, ("conv_out",)), lora)
    visited: list[str] = []
    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", real=real: visited.append(str(path)) or real(path))
    words = ["generate", "--bundle", bundle, "a fox", "--lora", lora, "-o", "out/fox.png", "-q"]
    words += ["--steps", 1, "--prior-steps", 1]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert str(host.PACK_FOLDER / "models") in visited
    found = [Path(path) for path in visited if path.startswith(str(tmp_path / "disk"))]
    assert [path for path in found if not path.is_relative_to(bundle)] == []


# --- LoRAs ---


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of LoRAs with one in it, where the pack lies in custom_nodes; two others elsewhere."""
    monkeypatch.setattr(host, "PACK_FOLDER", tmp_path / "ComfyUI" / "custom_nodes" / "unclip")
    monkeypatch.delenv(host.LORA_FOLDERS_VARIABLE, raising=False)
    known = tmp_path / "ComfyUI" / "models" / "loras"
    for path in (known / "ink.safetensors", tmp_path / "oil.safetensors", tmp_path / "ink.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return known


@pytest.mark.parametrize("turn", [1, -1])
def test_loras_are_chosen_by_name_and_by_path_together(loras: Path, tmp_path: Path, turn: int) -> None:
    given = ["ink.safetensors:0.5", str(tmp_path / "oil.safetensors"), "none"][::turn]
    found = chosen_loras(given)
    assert found == [("ink.safetensors", 0.5), ("oil.safetensors", 1.0), ("none", 1.0)][::turn]
    files = [find_lora(name) for name, _ in found]
    assert files == [loras / "ink.safetensors", tmp_path / "oil.safetensors", None][::turn]
    assert list_loras() == ["none", "ink.safetensors"]


def test_two_loras_of_one_name_are_refused(loras: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "oil.safetensors"
    other.parent.mkdir()
    other.touch()
    for given in (
        ["ink.safetensors", str(tmp_path / "ink.safetensors")],
        [str(tmp_path / "oil.safetensors"), str(other)],
    ):
        name = Path(given[1]).name
        with pytest.raises(typer.BadParameter, match=f"another LoRA has the name {name}; rename this one"):
            chosen_loras(given)


# --- every command ---


@pytest.mark.parametrize(
    "words",
    [
        ["batch", "rows.txt", "-o", "out", "--bundle", "karlo"],
        ["steps", "karlo", "rows.txt"],
        ["generate", "a fox", "-o", "out.png", "--bundle", "karlo"],
        ["eval", "config.toml", "--bundle", "karlo"],
        ["eval", "config.toml"],
        ["inspect", "karlo"],
        ["convert", "karlo", "-o", "out"],
    ],
)
def test_each_command_says_how_to_get_a_public_bundle(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "rows.txt").write_text("a fox\n")
    (tmp_path / "config.toml").write_text("bundle = 'karlo'\n[data]\nshards = 'x'\n")
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 1
    assert "'karlo' is not here. This is Karlo" in result.stderr


def test_a_path_that_is_there_stands_before_a_name(models: Path, tmp_path: Path) -> None:
    named = folder(models / "k")
    assert path_or_bundle(Path("k")) == named
    assert path_or_bundle(Path("none.ckpt")) == Path("none.ckpt")
    folder(tmp_path / "k")
    assert path_or_bundle(Path("k")) == Path("k")


def test_a_bundle_is_inspected_by_its_name(models: Path) -> None:
    write_tiny_bundle(models / "tiny")
    result = CliRunner().invoke(build_app(), ["inspect", "tiny"])
    assert result.exit_code == 0 and "unclip bundle" in result.stdout


def test_batch_and_steps_take_prior_and_decoder_apart(tmp_path: Path) -> None:
    whole = published.write_kandinsky(tmp_path / "apart")
    prior, decoder = whole / published.PRIOR_22, whole / "kandinsky-2-2-decoder"
    (tmp_path / "rows.csv").write_text("text,steps,prior_steps\na fox,1,1\n")
    words = ["batch", "rows.csv", "-o", "out", "--bundle", prior, "--bundle", decoder, "--cpu"]
    result = CliRunner().invoke(build_app(), [str(word) for word in (*words, "--precision", "fp32")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "000000.png").is_file()
    words = ["steps", prior, "rows.csv", "--with-bundle", decoder, "--cpu", "--precision", "fp32"]
    words += ["--steps", 2, "--sampler", "ddim", "--points", 8, "--guidance-scale", 1, "--pictures", 1]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert (decoder / "unclip.json").is_file() and not (prior / "unclip.json").exists()
