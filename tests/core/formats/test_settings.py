"""Settings of other people's configs: each is honoured, refused by its name, or without effect."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from unclip.core.formats.layouts import clip_keys
from unclip.core.formats.layouts import karlo as karlo_layout
from unclip.core.formats.layouts.diffusers_files import read_scheduler
from unclip.core.formats.layouts.diffusers_settings import (
    DECODER_SETTINGS,
    PRIOR_SETTINGS,
    SCHEDULER_SETTINGS,
    UNET_OPTIONS,
    UPSAMPLER_SETTINGS,
)
from unclip.core.formats.layouts.settings import Settings
from unclip.core.formats.load import load_any_stage

from ...helpers import karlo

SCHEDULERS = [
    UnCLIPScheduler,
    DDPMScheduler,
    DDIMScheduler,
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    EulerDiscreteScheduler,
]
CLASSES = [UNet2DConditionModel, UNet2DModel]


def arguments(cls: type) -> dict[str, object]:
    """What a class takes, and its defaults."""
    found = inspect.signature(cls.__init__).parameters.values()
    return {each.name: each.default for each in found if each.name != "self"}


def left_to_decide(names: set[str], settings: Settings) -> set[str]:
    return names - set(settings.fixed) - settings.free


# --- every setting that upstream knows has been decided ---


@pytest.mark.parametrize("settings", [UNET_OPTIONS, DECODER_SETTINGS, UPSAMPLER_SETTINGS])
@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_of_a_unet_is_decided(cls: type, settings: Settings) -> None:
    assert left_to_decide(set(arguments(cls)), settings) == set()


def test_every_setting_of_a_prior_is_decided() -> None:
    assert left_to_decide(set(arguments(PriorTransformer)), PRIOR_SETTINGS) == set()


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_every_setting_of_a_scheduler_is_decided(cls: type) -> None:
    assert left_to_decide(set(arguments(cls)), SCHEDULER_SETTINGS) == set()


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (CLIPTextConfig, clip_keys.TEXT),
        (CLIPVisionConfig, clip_keys.VISION),
        (CLIPConfig, clip_keys.WHOLE),
    ],
)
def test_every_setting_of_transformers_clip_is_decided(config: type, settings: Settings) -> None:
    names = {name for name in config().to_dict() if not name.startswith("_")}
    assert left_to_decide(names, settings) == set()


def test_every_setting_of_a_preprocessor_is_decided() -> None:
    names = {name for name in karlo.image_processor().to_dict() if not name.startswith("_")}
    assert left_to_decide(names, clip_keys.PREPROCESSOR) == set()


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(CLIPTextCfg, clip_keys.OPEN_CLIP_TEXT), (CLIPVisionCfg, clip_keys.OPEN_CLIP_VISION)],
)
def test_every_setting_of_open_clips_encoders_is_decided(cls: type, settings: Settings) -> None:
    assert left_to_decide({field.name for field in dataclasses.fields(cls)}, settings) == set()


def test_every_setting_of_open_clips_models_is_decided() -> None:
    assert left_to_decide(set(arguments(CLIP)), clip_keys.OPEN_CLIP) == set()


def test_no_setting_is_both_fixed_and_free() -> None:
    for settings in (UNET_OPTIONS, PRIOR_SETTINGS, SCHEDULER_SETTINGS, *vars(clip_keys).values()):
        if isinstance(settings, Settings):
            assert not set(settings.fixed) & settings.free


# --- what upstream computes by default is what is computed here ---


@pytest.mark.parametrize("cls", CLASSES)
def test_the_values_here_are_upstreams_defaults(cls: type) -> None:
    own = {"down_block_types", "up_block_types"}  # of the networks of unCLIP, not of the class
    for name, default in arguments(cls).items():
        if name in UNET_OPTIONS.fixed and name not in own:
            assert default in UNET_OPTIONS.fixed[name], name


def test_the_values_here_are_the_defaults_of_a_prior() -> None:
    found = arguments(PriorTransformer)
    assert all(found[name] in values for name, values in PRIOR_SETTINGS.fixed.items())


# --- any other value is refused by its name ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return karlo.save_as_published(karlo.tiny_pipeline(), tmp_path_factory.mktemp("settings") / "karlo")


OTHER = {
    "down_block_types": ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "class_embed_type": "timestep",
    "resnet_time_scale_shift": "spatial",
}


def another_value(name: str, values: tuple[object, ...]) -> object:
    if name in OTHER:
        return OTHER[name]
    first = next((value for value in values if value is not None), None)
    if isinstance(first, bool) or first is None:
        return not first
    return "gelu" if isinstance(first, str) else first * 2 + 1


CASES = [
    (folder, name)
    for folder, settings in (
        ("decoder", DECODER_SETTINGS),
        ("super_res_first", UPSAMPLER_SETTINGS),
        ("prior", PRIOR_SETTINGS),
    )
    for name in settings.fixed
]


@pytest.mark.parametrize(("network", "name"), CASES)
def test_a_setting_of_another_value_is_refused(saved: Path, tmp_path: Path, network: str, name: str) -> None:
    """Of a whole model, with a linked file of weights, one setting changed."""
    settings = {"decoder": DECODER_SETTINGS, "super_res_first": UPSAMPLER_SETTINGS, "prior": PRIOR_SETTINGS}
    folder = tmp_path / "karlo"
    shutil.copytree(saved, folder, copy_function=lambda source, target: Path(target).symlink_to(source))
    path = folder / network / "config.json"
    value = another_value(name, settings[network].fixed[name])
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**config, name: value}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {name} is {value!r}, expected")):
        load_any_stage(folder / network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is [0.1, 0.2], expected None"),
        ({"thresholding": True}, "thresholding is True, expected False"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, expected False"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True, expected False"),
        ({"new_scale": 2.0}, "has the setting new_scale = 2.0, which is not known here"),
    ],
)
def test_a_process_of_another_kind_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(change))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        read_scheduler(tmp_path, karlo_layout.PRIOR_DIFFUSION)


def test_a_setting_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    rules = Settings("a network of ours", {"act": ("silu",)}, frozenset({"size"}))
    rules.require(path, {"size": 3, "act": "silu", "_name": "x", "new_switch": False, "new_option": None})
    with pytest.raises(ValueError, match=re.escape(f"{path}: has the setting new_scale = 2.0, which is not")):
        rules.require(path, {"new_scale": 2.0})
    with pytest.raises(
        ValueError, match=re.escape("act is ['silu', 'relu'], expected 'silu'. Only a network")
    ):
        rules.require(path, {"act": ["silu", "relu"]})
    with pytest.raises(ValueError, match="act is None"):
        rules.require(path, {"act": None})


def test_a_setting_that_upstream_passes_over_is_told(tmp_path: Path, caplog) -> None:
    Settings("a CLIP model", strict=False).require(tmp_path / "config.json", {"new_scale": 2.0})
    assert "the setting new_scale = 2.0 is not known here and has no effect" in caplog.text


def test_what_training_adds_to_averaged_weights_does_not_matter(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "prior", tmp_path / "prior"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decay": 0.9999, "optimization_step": 7}))
    assert load_any_stage(folder, expect="prior").network.config.layers == 2


def test_a_number_that_a_config_leaves_out_is_upstreams_default(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "karlo"))
    for name, key in (("prior", "num_attention_heads"), ("decoder", "attention_head_dim")):
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        del config[key]
        path.write_text(json.dumps(config))
    assert (
        load_any_stage(folder / "prior").network.config.heads
        == arguments(PriorTransformer)["num_attention_heads"]
    )
    head_dim = load_any_stage(folder / "decoder").network.config.head_dim
    assert head_dim == arguments(UNet2DConditionModel)["attention_head_dim"]
