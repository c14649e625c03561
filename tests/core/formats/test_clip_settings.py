"""What lies beside the weights of a CLIP model counts; what is assumed without it is told."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel
from unclip.cli.inspect import describe_file
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.layouts.openai_clip import load_openai_clip, openai_clip_config
from unclip.core.formats.layouts.transformers_clip import load_transformers_clip
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.pipelines.encode import encode_images

from ...helpers import karlo
from ...helpers.clip import IDS, normalised, pixels, randomise, text_part, transformers_clip, vision_part

WITHIN, OUTSIDE = 1e-4, 1e-3
ASSUMED, GUESSED = "nothing beside it tells its kind of GELU", "has the unusual width"


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def openclip(quick_gelu: bool, head_width: int = 64, heads: int = 2, width: int = 128) -> nn.Module:
    return randomise(
        open_clip.CLIP(
            embed_dim=24,
            vision_cfg=open_clip.CLIPVisionCfg(
                image_size=32, patch_size=8, width=width, layers=2, head_width=head_width
            ),
            text_cfg=open_clip.CLIPTextCfg(width=width, heads=heads, layers=2),
            quick_gelu=quick_gelu,
        )
    )


def saved(folder: Path, model: nn.Module, half: bool = False, config: dict | None = None) -> Path:
    path = folder / "open_clip_pytorch_model.bin"
    state = {
        name: value.half().to(value.dtype) if half else value for name, value in model.state_dict().items()
    }
    torch.save(state, path)
    if config is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return path


def model_cfg(vision: dict | None = None, text: dict | None = None, **more: object) -> dict:
    return {"model_cfg": {"embed_dim": 24, "vision_cfg": vision or {}, "text_cfg": text or {}, **more}}


# --- open_clip's layout ---


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_the_config_of_open_clip_tells_the_gelu(tmp_path: Path, caplog, quick: bool, half: bool) -> None:
    """Whatever the precision says: weights of LAION in half precision, or trained further from OpenAI's."""
    config = model_cfg(quick_gelu=True) if quick else model_cfg()
    path = saved(tmp_path, openclip(quick), half, config)
    network = load_openai_clip(open_weights(path)).network
    assert network.config.quick_gelu == quick
    assert openai_clip_config(open_weights(path)) == network.config
    assert ASSUMED not in caplog.text
    expected = openclip(quick)
    expected.load_state_dict(torch.load(path))
    assert (network.encode_tokens(IDS)[2] - expected.encode_text(IDS)).abs().max() <= WITHIN
    other = openclip(not quick)
    other.load_state_dict(torch.load(path))
    assert (network.encode_tokens(IDS)[2] - other.encode_text(IDS)).abs().max() > OUTSIDE


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_config_of_transformers_beside_it_tells_the_gelu(tmp_path: Path, caplog, act: str) -> None:
    path = saved(tmp_path, openclip(True), half=True)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "clip", "text_config": {"hidden_act": act}, "vision_config": {"hidden_act": act}}
        )
    )
    assert load_openai_clip(open_weights(path)).network.config.quick_gelu == (act == "quick_gelu")
    assert ASSUMED not in caplog.text


@pytest.mark.parametrize("half", [True, False])
def test_an_assumed_gelu_is_told(tmp_path: Path, caplog, half: bool) -> None:
    path = saved(tmp_path, openclip(True), half)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # of something else in the folder
    assert load_openai_clip(open_weights(path)).network.config.quick_gelu == half
    assert f"{path}: {ASSUMED}; {'quick_gelu' if half else 'gelu'} is assumed" in caplog.text
    assert f'"hidden_act": "{"gelu" if half else "quick_gelu"}"' in caplog.text  # how to say otherwise


def test_heads_of_unusual_widths_are_those_of_the_config(tmp_path: Path, caplog) -> None:
    """As ViT-e-14's, which are 112 wide."""
    model = openclip(False, head_width=48, heads=4, width=96)
    path = saved(tmp_path, model, config=model_cfg({"head_width": 48}, {"heads": 4}))
    network = load_openai_clip(open_weights(path)).network
    assert (network.config.vision.head_width, network.config.text.heads) == (48, 4)
    images = pixels()
    found = network.encode_pixels(images)
    assert (found - model.encode_image(normalised(images))).abs().max() <= WITHIN
    assert (network.encode_tokens(IDS)[2] - model.encode_text(IDS)).abs().max() <= WITHIN
    assert GUESSED not in caplog.text
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path}: its image encoder is 96 wide, and nothing")):
        load_openai_clip(open_weights(path))


def test_assumed_heads_are_told(tmp_path: Path, caplog) -> None:
    path = saved(tmp_path, openclip(False))
    assert load_openai_clip(open_weights(path)).network.config.text.heads == 2
    assert f"its image encoder {GUESSED} 128" in caplog.text
    assert f"its text encoder {GUESSED} 128" in caplog.text


def test_statistics_of_open_clip_are_honoured(tmp_path: Path) -> None:
    pictures = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    path = saved(tmp_path, openclip(False), config=model_cfg() | {"preprocess_cfg": pictures})
    config = load_openai_clip(open_weights(path)).network.config
    assert (config.image_mean, config.image_std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model_cfg({"pool_type": "avg"}), "pool_type is 'avg', expected 'tok'"),
        (model_cfg({"timm_model_name": "vit"}), "timm_model_name is 'vit', expected None"),
        (model_cfg({"attentional_pool": True}), "attentional_pool is True, expected False"),
        (model_cfg({}, {"hf_model_name": "roberta"}), "hf_model_name is 'roberta', expected None"),
        (model_cfg({}, {"no_causal_mask": True}), "no_causal_mask is True, expected False"),
        (model_cfg({"new_scale": 2}), "has the setting new_scale = 2, which is not known here"),
        (model_cfg(quick_gelu="yes"), "quick_gelu is 'yes', expected true or false"),
        (model_cfg({"head_width": "wide"}), "head_width is 'wide', expected a whole number"),
        (model_cfg() | {"preprocess_cfg": {"mean": [1]}}, "mean is [1], expected numbers, one for each of"),
        (model_cfg() | {"preprocess_cfg": {"resize_mode": "squash"}}, "resize_mode is 'squash', expected"),
        (
            model_cfg() | {"preprocess_cfg": {"interpolation": "bilinear"}},
            "interpolation is 'bilinear', expec",
        ),
        (
            model_cfg() | {"preprocess_cfg": {"size": [32, 24]}},
            "size is [32, 24], expected the side of a squ",
        ),
        ({"model_cfg": 3}, "model_cfg is 3, expected a JSON object"),
    ],
)
def test_models_of_another_kind_are_named(tmp_path: Path, config: dict, message: str) -> None:
    path = saved(tmp_path, openclip(False), config=config)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'open_clip_config.json'}: {message}")):
        load_openai_clip(open_weights(path))


# --- transformers' layout ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, model = tmp_path_factory.mktemp("clip"), transformers_clip()
    model.save_pretrained(root / "whole")
    vision_part(model).save_pretrained(root / "image_encoder")
    return root


def test_a_file_alone_tells_what_is_assumed(tmp_path: Path, caplog) -> None:
    model = text_part(transformers_clip(dim=24))
    save_file(model.state_dict(), tmp_path / "clip_l.safetensors")
    network = load_any_stage(tmp_path / "clip_l.safetensors", expect="clip").network
    assert network.config.quick_gelu
    assert (
        f"clip_l.safetensors: {ASSUMED}; quick_gelu is assumed, as the published models of 24" in caplog.text
    )
    caplog.clear()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(model_cfg({}, {"heads": 2})))
    network = load_any_stage(tmp_path / "clip_l.safetensors", expect="clip").network
    assert (network.config.quick_gelu, network.config.text.heads) == (False, 2)
    assert caplog.text == ""


def test_a_whole_clip_folder_is_described(folders: Path) -> None:
    """Heads of 16, which only config.json tells."""
    described = describe_file(folders / "whole")
    loaded = load_transformers_clip(folders / "whole").network.config
    assert described["config"]["vision"]["head_width"] == loaded.vision.head_width == 16
    assert described["config"]["quick_gelu"]
    assert described["stage"] == "clip"


def processor(**changes: object) -> dict:
    whole = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], **whole, **changes}


@pytest.mark.parametrize("name", ["feature_extractor", "image_processor"])
def test_statistics_in_the_folder_beside_are_honoured(folders: Path, tmp_path: Path, name: str) -> None:
    encoder = Path(shutil.copytree(folders / "image_encoder", tmp_path / "image_encoder"))
    (tmp_path / name).mkdir()
    (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(processor()))
    stage = load_transformers_clip(None, encoder)
    assert stage.network.config.image_mean == (0.1, 0.2, 0.3)
    images, model = pixels(), vision_part(transformers_clip())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.5] * 3))
    found = encode_images(stage, images).vectors
    assert (found - model((images - mean) / std).image_embeds).abs().max() <= WITHIN
    assert (found - model(normalised(images)).image_embeds).abs().max() > OUTSIDE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop is False, expected True"),
        ({"do_normalize": False}, "do_normalize is False, expected True"),
        ({"resample": 2}, "resample is 2, expected 3"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 0.00392156862745098"),
        ({"size": 40}, "size is 40 and crop_size {'height': 32, 'width': 32}; expected one size"),
        ({"size": {"height": 32, "width": 30}}, "size is {'height': 32, 'width': 30}, expected the side of"),
        ({"size": {"shortest_edge": {}}}, "size is {'shortest_edge': {}}, expected the side of"),
        ({"crop_size": {"height": True, "width": True}}, "crop_size is {'height': True, 'width': True}, "),
        ({"image_std": [0.5]}, "image_std is [0.5], expected numbers"),
    ],
)
def test_pictures_that_are_prepared_otherwise_are_named(
    folders: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    encoder = Path(shutil.copytree(folders / "image_encoder", tmp_path / "image_encoder"))
    path = tmp_path / "feature_extractor" / "preprocessor_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(processor(**changes)))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_transformers_clip(None, encoder)


def test_a_preprocessor_of_another_size_is_named(folders: Path, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(folders / "image_encoder", tmp_path / "image_encoder"))
    (encoder / "preprocessor_config.json").write_text(json.dumps(processor(size=224, crop_size=224)))
    with pytest.raises(
        ValueError, match="has pictures of 32 pixels, but the preprocessor beside it cuts them"
    ):
        load_transformers_clip(None, encoder)


@pytest.mark.parametrize(("token", "taken"), [(49407, True), (2, True), (49406, False)])
def test_the_end_of_a_caption_is_clips(folders: Path, tmp_path: Path, token: int, taken: bool) -> None:
    """transformers reads 2 as the highest id: configs of 2022 say so and mean 49407."""
    folder = Path(shutil.copytree(folders / "whole", tmp_path / "whole"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = token
    (folder / "config.json").write_text(json.dumps(config))
    if taken:
        assert load_transformers_clip(folder).network.config.text.heads == 2
        return
    with pytest.raises(ValueError, match="eos_token_id is 49406, expected 49407 or 2"):
        load_transformers_clip(folder)


# --- without a projection ---


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_without_its_projection_is_named(tmp_path: Path, prefix: str) -> None:
    """Of Stable Diffusion; transformers 5 writes it without its prefix."""
    state = CLIPTextModel(transformers_clip().config.text_config).state_dict()
    bare = {name.removeprefix("text_model."): value.contiguous() for name, value in state.items()}
    save_file({prefix + name: value for name, value in bare.items()}, tmp_path / "clip_l.safetensors")
    with pytest.raises(ValueError, match=r"clip_l.safetensors: is the text encoder of a CLIP .* projection"):
        load_any_stage(tmp_path / "clip_l.safetensors", expect="clip")


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_an_image_encoder_without_its_projection_is_named(tmp_path: Path, prefix: str) -> None:
    state = CLIPVisionModel(transformers_clip().config.vision_config).state_dict()
    bare = {name.removeprefix("vision_model."): value.contiguous() for name, value in state.items()}
    save_file({prefix + name: value for name, value in bare.items()}, tmp_path / "clip_vision.safetensors")
    with pytest.raises(ValueError, match=r"is the image encoder of a CLIP model without its projection"):
        load_any_stage(tmp_path / "clip_vision.safetensors", expect="clip")


# --- Karlo's prior in a pipeline of Stable Diffusion's unCLIP ---


def test_the_prior_of_a_stable_unclip_folder_has_its_own_text_encoder(tmp_path: Path) -> None:
    """``StableUnCLIPPipeline``: ``text_encoder`` is the one of its latent decoder."""
    folder = karlo.save_as_published(karlo.tiny_pipeline(), tmp_path / "stable")
    for name in ("decoder", "text_proj", "super_res_first", "super_res_last"):
        shutil.rmtree(folder / name)
    (folder / "text_encoder").rename(folder / "prior_text_encoder")
    (folder / "tokenizer").rename(folder / "prior_tokenizer")
    CLIPTextModel(transformers_clip().config.text_config).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableUnCLIPPipeline"}))
    bundle = load_any_bundle(folder)
    assert bundle.clip.source.startswith(str(folder / "prior_text_encoder"))
    assert (bundle.clip.network.config.embed_dim, bundle.clip.network.config.vision) == (karlo.DIM, None)
    assert bundle.clip.space == bundle.prior.space
    assert (bundle.decoder, bundle.upsamplers) == (None, ())
