"""``unclip train``: config files, the command, and errors that name what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import unclip
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.config import config_from_dict
from unclip.core.formats.native.checkpoints import load_stage
from unclip.core.networks.unet import UNet
from unclip.core.stages import UpsamplerStage
from unclip.core.training import stages as stages_module
from unclip.core.training.recipes.decoder import DecoderTraining
from unclip.core.training.recipes.upsampler import UpsamplerTraining
from unclip.core.training.stages import build_recipe, read_toml, train_stage

from ...helpers.stages import changed, stage_settings, write_tiny_clip
from ...helpers.training import write_tiny_shards

CONFIGS = Path(unclip.__file__).parent / "models" / "mini" / "configs"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


UPSAMPLER_TOML = """
low_size = 16
degradation = "bsr"
data.shards = "{shards}"
[model]
image_size = 32
patch_size = 2
concat_channels = 3
channels = 32
channel_mult = [1, 1]
res_blocks = [1, 1]
noise_level = true
[diffusion]
schedule = "linear"
prediction = "v"
[loop]
steps = 6
batch_size = 4
learning_rate = 1e-3
precision = "no"
compile = false
checkpoint_every = 2
log_every = 1
log_with = []
"""


@pytest.fixture
def toml(tmp_path: Path, settings: dict) -> Path:
    path = tmp_path / "up.toml"
    shards = Path(settings["upsampler"]["data"]["shards"]).as_posix()
    path.write_text(UPSAMPLER_TOML.format(shards=shards), encoding="utf-8")
    return path


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["train", *map(str, arguments), "--cpu"])
    return result.exit_code, " ".join(result.output.split())


def test_the_command_trains_stops_and_goes_on(toml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for options in (("--steps", 2), ()):
        code, output = invoke("upsampler", toml, "-o", folder, *options)
        assert code == 0, output
        assert output.endswith(f" {folder}")
    steps = [json.loads(row)["step"] for row in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert isinstance(load_stage(folder / "upsampler-32.safetensors"), UpsamplerStage)


def test_the_command_names_what_is_wrong(toml: Path, tmp_path: Path) -> None:
    for arguments, message in {
        (
            "painter",
            toml,
        ): "unknown stage 'painter': choose from clip, prior, ar-prior, decoder, upsampler, classifier",
        ("upsampler", tmp_path / "none.toml"): f"no config file {tmp_path / 'none.toml'}",
        ("decoder", toml): f"{toml}: unknown fields degradation, low_size for DecoderTraining",
    }.items():
        code, output = invoke(*arguments)
        assert code == 1
        assert message in output
        assert "loss" not in output  # no bar of a run that has not begun


def test_the_command_says_which_package_is_missing(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> None:
        raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

    monkeypatch.setattr(stages_module, "train_stage", missing)
    code, output = invoke("upsampler", toml)
    assert code == 1
    assert "this command needs the package accelerate, which is not installed: pip install -e" in output


def test_what_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("steps = = 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.toml is not a TOML file: "):
        read_toml(path)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"broken\.toml is not UTF-8 \(byte 0x89 in line 1\)"):
        read_toml(path)
    with pytest.raises(ValueError, match=r"no config file .*none\.toml"):
        train_stage("clip", tmp_path / "none.toml", tmp_path)


def write(folder: Path, **files: str) -> Path:
    """Config files by name; returns the folder."""
    for name, content in files.items():
        (folder / f"{name}.toml").write_text(content, encoding="utf-8")
    return folder


def test_a_config_can_extend_another_one(tmp_path: Path) -> None:
    (tmp_path / "rounds").mkdir()
    folder = write(
        tmp_path,
        first='drop = 0.1\ndata = {groups = ["food", "animals"]}\n[model]\nwidth = 8\n[model.text]\ndim = 4',
        second='extends = "first.toml"\ndata.groups = ["food"]\n[model.text]\nheads = 2',
    )
    write(folder / "rounds", third='extends = "../second.toml"\ndrop = 0.5\n[loop]\nsteps = 3')
    expected = {
        "drop": 0.1,
        "data": {"groups": ["food"]},
        "model": {"width": 8, "text": {"dim": 4, "heads": 2}},
    }
    assert read_toml(folder / "second.toml") == expected
    assert read_toml(folder / "rounds" / "third.toml") == {**expected, "drop": 0.5, "loop": {"steps": 3}}


def test_what_cannot_be_extended_is_named(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        lost='extends = "gone.toml"',
        number="extends = 3",
        own='extends = "own.toml"',
        a='extends = "b.toml"',
        b='extends = "c.toml"',
        c='extends = "./a.toml"',
        start='extends = "broken.toml"',
        broken="steps = = 3",
    )
    for name, message in {
        "lost": f"lost.toml: extends 'gone.toml', but there is no config file {folder / 'gone.toml'}",
        "number": "number.toml: extends is 3, expected the name of a config file",
        "own": "own.toml: extends leads in a circle, own.toml → own.toml; take it out of one of them",
        "a": "a.toml: extends leads in a circle, a.toml → b.toml → c.toml → a.toml",
        "start": "broken.toml is not a TOML file",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            read_toml(folder / f"{name}.toml")


@pytest.mark.parametrize(
    ("stage", "name", "value", "message"),
    [
        ("prior", "diffusion.prediction", "eps", "prediction is 'eps'; a diffusion prior predicts 'x0'"),
        (
            "prior",
            "clip",
            "nowhere.safetensors",
            "no CLIP model at nowhere.safetensors: train it with `unclip",
        ),
        (
            "prior",
            "loop.precision",
            "fp8",
            "test.toml.loop.precision: found 'fp8', expected one of 'auto', 'no'",
        ),
        (
            "decoder",
            "model.out_channels",
            6,
            "model.out_channels is 6, expected 3 with the variance 'fixed_small'",
        ),
        ("prior", "model.dim", 8, "model.dim is 8, but "),
        ("ar-prior", "model.dim", 8, "model.dim is 8, but "),
        ("ar-prior", "model.text_dim", 8, "model.text_dim is 8, but "),
        ("decoder", "model.conditioning.clip_dim", 8, "model.conditioning.clip_dim is 8, but "),
        ("decoder", "model.conditioning.text_dim", 8, "model.conditioning.text_dim is 8, but "),
        ("decoder", "model.conditioning", None, "model.conditioning.clip_dim is not set, expected 32"),
        ("decoder", "model.concat_channels", 3, "model.concat_channels is 3, expected 0 in a decoder"),
        (
            "decoder",
            "data.styles",
            ["noto-v1"],
            "SHARDS: no pictograms of the styles noto-v1 and the groups",
        ),
        ("decoder", "data.styles", ["noto", "wingdings"], "unknown style wingdings: choose from fluent-"),
        ("clip", "data.groups", ["objects", "smilies"], "unknown group smilies: choose from smileys, "),
        ("upsampler", "low_size", 20, "low_size is 20, expected a whole fraction of model.image_size 32"),
        ("upsampler", "low_size", 2, "low_size is 2, expected a multiple of 4"),
        ("upsampler", "model.patch_size", 8, "model.image_size is 32, expected a multiple of 64"),
        ("upsampler", "model.concat_channels", 0, "model: an upsampler has concat_channels = 3 for the low"),
        (
            "upsampler",
            "model.noise_level",
            False,
            "max_noise_level is 0.4, but the model is not told the noise",
        ),
        ("prior", "loop.batch_size", 2**63, "loop.batch_size is 9223372036854775808, expected 1 to 1048576"),
        ("prior", "fit_pictures", 10**9, "fit_pictures is 1000000000, expected 2 to 131072"),
        ("ar-prior", "fit_pictures", 1, "fit_pictures is 1, expected 2 to 131072"),
        (
            "clip",
            "locked_image_tower",
            True,
            "locked_image_tower keeps the image tower as it is, but",
        ),
        ("upsampler", "loop.batch_size", 6, "batch_size 6 is not a multiple of 4 crops per picture"),
        (
            "upsampler",
            "degradation",
            "jpeg",
            "test.toml.degradation: found 'jpeg', expected one of 'blur', 'bsr'",
        ),
        (
            "clip",
            "model.text.vocab_size",
            99,
            "CLIP config: text.vocab_size is 99, but a tokenizer of 1000 merges",
        ),
    ],
)
def test_wrong_settings_are_named(stage: str, name: str, value: Any, message: str, settings: dict) -> None:
    message = message.replace("SHARDS", settings["clip"]["data"]["shards"])
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        build_recipe(stage, changed(settings[stage], name, value), "test.toml")


# --- the config files of the repository ---


@pytest.mark.parametrize("kind", ["decoder", "upsampler"])
def test_the_shipped_configs_describe_networks(kind: str) -> None:
    config = {"decoder": DecoderTraining, "upsampler": UpsamplerTraining}[kind]
    paths = sorted(CONFIGS.glob(f"{kind}*.toml"))
    assert paths
    for path in paths:
        model = config_from_dict(config, read_toml(path), str(path)).model
        with torch.device("meta"):
            UNet(model)


def test_every_shipped_config_of_a_stage_is_valid() -> None:
    found = set()
    for path in sorted(CONFIGS.glob("*.toml")):
        stage = next((name for name in stages_module.RECIPES if path.stem.startswith(name)), None)
        if stage is not None:
            found.add(stage)
            with pytest.raises(ValueError, match=r"no \.tar shards in|no CLIP model at"):
                build_recipe(stage, _without_files(read_toml(path)), str(path))
    assert found == set(stages_module.RECIPES)


def _without_files(settings: dict[str, Any]) -> dict[str, Any]:
    """Without its data and CLIP model a config fails at the first of them, once its settings are checked."""
    moved = {name: "nowhere.safetensors" for name in ("clip",) if name in settings}
    return {**settings, **moved, "data": {**settings["data"], "shards": "nowhere"}}
