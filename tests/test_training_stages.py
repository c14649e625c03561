"""The recipes of all four stages, each in miniature: they learn, resume, and export what loads."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.formats.native import load_stage, save_stage
from unclip.core.networks.clip import ClipTokenizerConfig
from unclip.core.pipelines.encode import encode_images
from unclip.core.stages import ClipStage, DecoderStage, PriorStage, UpsamplerStage
from unclip.core.training import stages as stages_module
from unclip.core.training.loop import LoopReport, train
from unclip.core.training.stages import build_recipe, read_toml, train_stage

from .helpers_bundle import DIM, TEXT_LENGTH, TEXT_WIDTH, tiny_bundle
from .helpers_training import write_tiny_shards

MERGES = 1000
LOOP = {
    "steps": 60,
    "batch_size": 12,
    "learning_rate": 3e-3,
    "warmup": 5,
    "ema_decay": 0.9,
    "precision": "no",
    "compile": False,
    "log_every": 1,
    "checkpoint_every": 2,
}


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_stage(tiny_bundle(upsamplers=0).clip, path)
    return path


@pytest.fixture
def settings(shards: Path, clip_file: Path) -> dict[str, dict[str, Any]]:
    """Settings of every stage, as a TOML file gives them."""
    data = {"shards": str(shards)}
    common = {"data": data, "loop": dict(LOOP)}
    trained_on_clip = {**common, "clip": str(clip_file)}
    settings = {
        "clip": {
            **common,
            "space_id": "unclip/test",
            "model": {
                "embed_dim": 16,
                "vision": {"width": 32, "layers": 1, "image_size": 16, "patch_size": 8, "head_width": 16},
                "text": {
                    "width": 32,
                    "heads": 2,
                    "layers": 1,
                    "context_length": TEXT_LENGTH,
                    "vocab_size": ClipTokenizerConfig(MERGES).vocab_size,
                },
                "tokenizer": {"merges": MERGES},
            },
        },
        "prior": {
            **trained_on_clip,
            "model": {
                "dim": DIM,
                "text_dim": TEXT_WIDTH,
                "width": 32,
                "layers": 1,
                "heads": 2,
                "text_length": TEXT_LENGTH,
            },
            "diffusion": {"prediction": "x0", "clip_x0": 5.0},
        },
        "decoder": {
            **trained_on_clip,
            "model": {
                "image_size": 16,
                "patch_size": 2,
                "channels": 32,
                "channel_mult": [1, 1],
                "res_blocks": [1, 1],
                "attention": [4],
                "head_dim": 16,
                "conditioning": {
                    "clip_dim": DIM,
                    "clip_tokens": 2,
                    "text_dim": TEXT_WIDTH,
                    "context_dim": 32,
                    "standardised": True,
                },
            },
            "diffusion": {"prediction": "v"},
        },
        "upsampler": {
            **common,
            "low_size": 16,
            "degradation": "blur",
            "model": {
                "image_size": 32,
                "patch_size": 2,
                "concat_channels": 3,
                "channels": 32,
                "channel_mult": [1, 1],
                "res_blocks": [1, 1],
                "resample_in_block": False,
                "noise_level": True,
            },
            "diffusion": {"prediction": "v"},
        },
    }
    return copy.deepcopy(settings)


def changed(settings: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The settings with the value of a dotted name replaced."""
    result = copy.deepcopy(settings)
    *path, last = name.split(".")
    table = result
    for part in path:
        table = table[part]
    table[last] = value
    return result


def run(stage: str, settings: dict[str, Any], folder: Path, on_step=None) -> list[float]:
    """Train and return the losses."""
    losses: list[float] = []

    def report(state: LoopReport) -> None:
        losses.append(state.loss)
        if on_step is not None:
            on_step(state)

    torch.manual_seed(0)
    config, recipe = build_recipe(stage, settings, "test.toml")
    train(recipe, config.loop, folder, report, cpu=True)
    return losses


def exported(stage: str, folder: Path) -> Path:
    return folder / f"{'upsampler-32' if stage == 'upsampler' else stage}.safetensors"


# --- learning and exporting ---


@pytest.mark.parametrize("stage", stages_module.RECIPES)
def test_a_stage_learns_and_its_export_loads(stage: str, settings: dict, tmp_path: Path) -> None:
    losses = run(stage, settings[stage], tmp_path)
    assert len(losses) == LOOP["steps"]
    assert sum(losses[-15:]) < 0.85 * sum(losses[:15])
    loaded = load_stage(exported(stage, tmp_path))
    kind = {"clip": ClipStage, "prior": PriorStage, "decoder": DecoderStage, "upsampler": UpsamplerStage}
    assert type(loaded) is kind[stage]
    assert {value.dtype for value in loaded.network.parameters()} == {torch.float16}
    assert all(value.isfinite().all() for value in loaded.network.parameters())


def test_a_clip_model_is_exported_with_the_statistics_of_its_space(settings: dict, tmp_path: Path) -> None:
    run("clip", changed(settings["clip"], "loop.steps", 4), tmp_path)
    clip = load_stage(exported("clip", tmp_path), dtype=torch.float32)
    assert (clip.space.id, clip.space.dim, clip.space.norm) == ("unclip/test", 16, "unit")
    images = torch.cat([_pictures(settings, step) for step in range(100, 120)])
    standardised = clip.space.standardise(encode_images(clip, images).vectors)
    assert standardised.mean(dim=0).abs().max() < 0.3
    assert (standardised.std(dim=0) - 1).abs().max() < 0.3


def _pictures(settings: dict, step: int) -> torch.Tensor:
    _, recipe = build_recipe("clip", settings["clip"], "test.toml")
    return recipe.batch(step)[0]


def test_an_upsampler_is_exported_with_its_input_size(settings: dict, tmp_path: Path) -> None:
    run("upsampler", changed(settings["upsampler"], "loop.steps", 1), tmp_path)
    upsampler = load_stage(exported("upsampler", tmp_path))
    assert (upsampler.low_size, upsampler.network.config.image_size) == (16, 32)
    assert upsampler.diffusion.prediction == "v"


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_stage_is_exported_with_the_space_of_its_clip(stage: str, settings: dict, tmp_path: Path) -> None:
    run(stage, changed(settings[stage], "loop.steps", 1), tmp_path)
    space = load_stage(exported(stage, tmp_path)).space
    assert space == tiny_bundle(upsamplers=0).clip.space


@pytest.mark.parametrize("stage", ["decoder", "upsampler"])
def test_a_killed_stage_resumes_to_the_same_file(stage: str, settings: dict, tmp_path: Path) -> None:
    short = changed(settings[stage], "loop.steps", 5)
    whole = run(stage, short, tmp_path / "whole")

    def kill(report: LoopReport) -> None:
        if report.step == 4:
            raise Killed

    with pytest.raises(Killed):
        run(stage, short, tmp_path / "killed", kill)
    assert not exported(stage, tmp_path / "killed").exists()
    assert run(stage, short, tmp_path / "killed") == whole[2:]
    files = [exported(stage, tmp_path / name).read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


# --- what the decoder is trained on ---


class Recorder(torch.nn.Module):
    """Stands for the network, keeps what it is given, and puts out zeros."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        self.x, self.t, self.conditions = x, t, conditions
        return torch.zeros(len(x), self.channels, *x.shape[2:])


def conditions_of(settings: dict[str, Any], channels: int = 3) -> tuple[Any, Recorder, float]:
    _, recipe = build_recipe("decoder", settings, "test.toml")
    recorder = Recorder(channels)
    loss = recipe.loss(recorder, recipe.batch(3), torch.Generator().manual_seed(5))
    return recipe, recorder, loss.item()


def test_the_decoder_is_given_standardised_embeddings_where_its_config_says_so(settings: dict) -> None:
    recipe, standardised, _ = conditions_of(settings["decoder"])
    _, raw, _ = conditions_of(changed(settings["decoder"], "model.conditioning.standardised", False))
    images = recipe.batch(3)[0]
    z_i = recipe.clip.encode_images(images)
    assert torch.equal(raw.conditions["clip_embedding"], z_i)
    assert torch.equal(standardised.conditions["clip_embedding"], recipe.clip.space.standardise(z_i))


def test_captions_and_embeddings_are_dropped_in_the_shares_of_the_config(settings: dict) -> None:
    decoder = changed(changed(settings["decoder"], "drop_clip", 0.25), "loop.batch_size", 120)
    _, recorder, _ = conditions_of(decoder)
    captioned = recorder.conditions["text_mask"].any(dim=1).float().mean()
    assert abs(recorder.conditions["keep_clip"].float().mean() - 0.75) < 0.12
    assert abs(captioned - 0.5) < 0.15


def test_dropped_captions_become_empty_ones_where_the_config_says_so(settings: dict) -> None:
    decoder = changed(settings["decoder"], "model.conditioning.text_pooled_dim", DIM)
    dropping = changed(changed(decoder, "model.conditioning.null_text", "empty_caption"), "drop_text", 1.0)
    recipe, recorder, _ = conditions_of(dropping)
    tokens, mask, pooled = recipe.clip.encode_tokens(recipe.clip.tokenizer([""]))
    rows = LOOP["batch_size"]
    assert torch.equal(recorder.conditions["text_mask"], mask.expand(rows, -1))
    assert torch.allclose(recorder.conditions["text_tokens"], tokens.expand(rows, -1, -1), atol=1e-6)
    assert torch.allclose(recorder.conditions["text_pooled"], pooled.expand(rows, -1), atol=1e-6)
    _, unmasked, _ = conditions_of(changed(decoder, "drop_text", 1.0))
    assert not unmasked.conditions["text_mask"].any()


def test_a_decoder_with_learned_variance_trains(settings: dict, tmp_path: Path) -> None:
    decoder = changed(settings["decoder"], "diffusion", {"prediction": "eps", "variance": "learned_range"})
    decoder = changed(changed(decoder, "model.out_channels", 6), "loop.steps", 3)
    assert all(loss > 0 for loss in run("decoder", decoder, tmp_path))
    assert load_stage(exported("decoder", tmp_path)).diffusion.variance == "learned_range"
    # The variance half of the output counts, by a little.
    _, _, learned = conditions_of(decoder, channels=6)
    fixed = changed(changed(decoder, "diffusion", {"prediction": "eps"}), "model.out_channels", 3)
    _, _, simple = conditions_of(fixed)
    assert learned != simple
    assert abs(learned - simple) < 0.2 * simple


# --- config files and the command ---

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
"""


@pytest.fixture
def toml(tmp_path: Path, shards: Path) -> Path:
    path = tmp_path / "up.toml"
    path.write_text(UPSAMPLER_TOML.format(shards=shards.as_posix()), encoding="utf-8")
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
    assert isinstance(load_stage(exported("upsampler", folder)), UpsamplerStage)


def test_the_command_names_what_is_wrong(toml: Path, tmp_path: Path) -> None:
    for arguments, message in {
        ("painter", toml): "unknown stage 'painter': choose from clip, prior, decoder, upsampler",
        ("upsampler", tmp_path / "none.toml"): f"no config file {tmp_path / 'none.toml'}",
        ("decoder", toml): f"{toml}: unknown fields degradation, low_size for DecoderTraining",
    }.items():
        code, output = invoke(*arguments)
        assert code == 1
        assert message in output


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
    with pytest.raises(ValueError, match=r"no config file .*none\.toml"):
        train_stage("clip", tmp_path / "none.toml", tmp_path)


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
            "test.toml.loop.precision: found 'fp8', expected one of 'no', 'bf16'",
        ),
        (
            "decoder",
            "model.out_channels",
            6,
            "model.out_channels is 6, expected 3 with the variance 'fixed_small'",
        ),
        ("decoder", "model.conditioning.clip_dim", 8, "model.conditioning.clip_dim is 8, but "),
        ("decoder", "model.conditioning.text_dim", 8, "model.conditioning.text_dim is 8, but "),
        ("decoder", "model.conditioning", None, "model.conditioning.clip_dim is not set, expected 32"),
        ("decoder", "model.concat_channels", 3, "model.concat_channels is 3, expected 0 in a decoder"),
        (
            "decoder",
            "data.styles",
            ["wingdings"],
            "SHARDS: no pictograms of the styles wingdings and the groups",
        ),
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
def test_wrong_settings_are_named(
    stage: str, name: str, value: Any, message: str, settings: dict, shards: Path
) -> None:
    message = message.replace("SHARDS", str(shards))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        build_recipe(stage, changed(settings[stage], name, value), "test.toml")
