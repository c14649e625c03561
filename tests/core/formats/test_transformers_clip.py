"""CLIP encoders in transformers' layout, against transformers itself on the same random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel
from unclip.core.formats.layouts.transformers_clip import load_transformers_clip, require_clip_tokenizer
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.pipelines.encode import encode_images, encode_text

from ...helpers.clip import IDS, normalised, pixels, text_part, transformers_clip, vision_part

WITHIN, OUTSIDE = 1e-4, 1e-2


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return transformers_clip()


@pytest.fixture(scope="module")
def folders(model: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders ``text_encoder`` and ``image_encoder``, as diffusers has them, and ``whole``."""
    root = tmp_path_factory.mktemp("clip")
    text_part(model).save_pretrained(root / "text_encoder")
    vision_part(model).save_pretrained(root / "image_encoder")
    model.save_pretrained(root / "whole")
    return root


@pytest.fixture(scope="module")
def stage(folders: Path):
    return load_transformers_clip(folders / "text_encoder", folders / "image_encoder")


def test_captions_are_encoded_as_transformers_does(model: CLIPModel, stage) -> None:
    expected = text_part(model)(IDS)
    tokens, mask, pooled = stage.network.encode_tokens(IDS)
    assert (tokens - expected.last_hidden_state).abs().max() <= WITHIN
    assert (pooled - expected.text_embeds).abs().max() <= WITHIN
    assert expected.text_embeds.std() > 0.1
    assert mask.sum(1).tolist() == [5, 2]  # start to end; what follows is padding, though 0 is "!"
    other = IDS.clone()
    other[0, 2] += 1
    assert (stage.network.encode_tokens(other)[2] - expected.text_embeds).abs().max() > OUTSIDE


def test_pictures_are_encoded_as_transformers_does(model: CLIPModel, stage) -> None:
    images = pixels()
    expected = vision_part(model)(normalised(images)).image_embeds
    found = encode_images(stage, images).vectors
    assert (found - expected).abs().max() <= WITHIN
    assert expected.std() > 0.1
    assert (vision_part(model)(images).image_embeds - expected).abs().max() > OUTSIDE


def test_the_kind_of_gelu_is_the_configs(model: CLIPModel, folders: Path, stage, tmp_path: Path) -> None:
    config = json.loads((folders / "text_encoder" / "config.json").read_text())
    assert config["hidden_act"] == "quick_gelu"
    exact = tmp_path / "exact"
    exact.mkdir()
    (exact / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    save_file(text_part(model).state_dict(), exact / "model.safetensors")
    other = load_transformers_clip(exact)
    pooled = other.network.encode_tokens(IDS)[2]
    text_encoder = text_part(transformers_clip("gelu"))
    assert (pooled - text_encoder(IDS).text_embeds).abs().max() <= WITHIN
    assert (pooled - stage.network.encode_tokens(IDS)[2]).abs().max() > 1e-3
    assert not other.network.config.quick_gelu


def test_one_folder_of_both_encoders(folders: Path, model: CLIPModel, stage) -> None:
    whole = load_transformers_clip(folders / "whole")
    assert torch.equal(whole.network.encode_tokens(IDS)[2], stage.network.encode_tokens(IDS)[2])
    assert whole.network.logit_scale == model.logit_scale
    # apart, the folders say nothing of it: where published models ended
    assert float(stage.network.logit_scale) == pytest.approx(4.6052, abs=1e-4)


def test_the_stage_is_ready_for_captions(stage) -> None:
    features = encode_text(stage, ["a red fox", "!"])
    assert features.tokens.shape == (2, 77, 32)
    assert features.mask.sum(1).tolist() == [5, 3]  # the "!" of a caption is not padding
    assert features.space.id == "clip-24"
    assert features.space.norm == "raw"


def test_half_precision_is_kept_or_converted(model: CLIPModel, folders: Path, tmp_path: Path) -> None:
    part = text_part(model)
    expected = part(IDS).text_embeds
    state = {name: value.half() for name, value in part.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders / "text_encoder" / "config.json").read_text())
    assert load_transformers_clip(tmp_path).network.clip.ln_final.weight.dtype == torch.float16
    full = load_transformers_clip(tmp_path, dtype=torch.float32).network
    assert full.clip.ln_final.weight.dtype == torch.float32
    assert (full.encode_tokens(IDS)[2] - expected).abs().max() < 0.05


def test_a_stage_of_one_encoder_says_what_it_lacks(folders: Path) -> None:
    text = load_transformers_clip(folders / "text_encoder")
    assert text.network.config.vision is None
    assert encode_text(text, ["a fox"]).pooled.shape == (1, 24)
    with pytest.raises(ValueError, match="without an image encoder, so it cannot encode pictures"):
        encode_images(text, pixels())
    image = load_transformers_clip(image_encoder=folders / "image_encoder")
    assert encode_images(image, pixels()).vectors.shape == (2, 24)
    with pytest.raises(ValueError, match="without a text encoder, so it cannot encode captions"):
        encode_text(image, ["a fox"])


def test_a_single_encoder_can_be_saved_in_our_format(folders: Path, tmp_path: Path) -> None:
    text = load_transformers_clip(folders / "text_encoder")
    save_stage(text, tmp_path / "clip.safetensors", max_shard_bytes=None)
    again = load_stage(tmp_path / "clip.safetensors", expect="clip")
    assert again.network.config == text.network.config
    weights, kept = text.network.state_dict(), again.network.state_dict()
    assert kept.keys() == weights.keys() and all(torch.equal(kept[name], weights[name]) for name in weights)
    # Not to the bit: kernels round by where in memory the weights lie.
    found, expected = again.network.encode_tokens(IDS)[2], text.network.encode_tokens(IDS)[2]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_tokenizer_is_checked(tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): n for token, n in SimpleTokenizer().encoder.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    require_clip_tokenizer(tmp_path)
    vocabulary["fox</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["fox</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="is not the vocabulary of CLIP"):
        require_clip_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=re.escape("has no vocab.json")):
        require_clip_tokenizer(tmp_path / "nowhere")


def changed(folders: Path, tmp_path: Path, name: str, value: torch.Tensor | None) -> Path:
    """The text encoder with one tensor replaced, added, or (None) left out."""
    state = load_file(folders / "text_encoder" / "model.safetensors")
    state.pop(name, None)
    if value is not None:
        state[name] = value
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders / "text_encoder" / "config.json").read_text())
    return tmp_path


FC1 = "text_model.encoder.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (FC1, None, f"model.safetensors: lacks {FC1}; found 37 tensors. The file is incomplete"),
        ("text_model.extra", torch.ones(2), "holds text_model.extra, for which its layout has no place"),
        (FC1, torch.ones(80, 33), f"found the shape {FC1} [80, 33], expected [80, 32]"),
        (
            "text_model.embeddings.token_embedding.weight",
            torch.ones(100, 32),
            "has a vocabulary of 100 tokens, expected CLIP's 49408",
        ),
    ],
)
def test_a_damaged_encoder_is_an_error(folders: Path, tmp_path: Path, name, value, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_transformers_clip(changed(folders, tmp_path, name, value))


def test_encoders_that_do_not_belong_together_are_an_error(folders: Path, tmp_path: Path) -> None:
    vision_part(transformers_clip(dim=16)).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="embeddings of 24 dimensions and its image encoder of 16"):
        load_transformers_clip(folders / "text_encoder", tmp_path / "narrow")
    vision_part(transformers_clip("gelu")).save_pretrained(tmp_path / "gelu")
    with pytest.raises(ValueError, match="differ in hidden_act"):
        load_transformers_clip(folders / "text_encoder", tmp_path / "gelu")
    with pytest.raises(ValueError, match="hold the same encoder twice"):
        load_transformers_clip(folders / "text_encoder", folders / "whole")
    with pytest.raises(ValueError, match="neither a text encoder nor an image encoder"):
        load_transformers_clip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected one of quick_gelu, gelu"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, expected 1e-05. Only a plain CLIP model"),
        ({"model_type": "siglip_text_model"}, "model_type is 'siglip_text_model', expected a CLIP model"),
        ({"num_attention_heads": "four"}, "num_attention_heads is 'four', expected a whole number"),
        ({"model_type": "clip", "text_config": [1]}, "text_config is [1], expected a JSON object"),
    ],
)
def test_other_transformers_are_errors(folders: Path, tmp_path: Path, change: dict, message: str) -> None:
    changed(folders, tmp_path, "none", None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_transformers_clip(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        load_transformers_clip(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "found 3, expected a JSON object"),
        ('{"image_mean": 3}', "image_mean is 3, expected numbers"),
    ],
)
def test_a_damaged_preprocessor_is_an_error(
    folders: Path, tmp_path: Path, content: str, message: str
) -> None:
    changed(folders, tmp_path, "none", None)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_transformers_clip(tmp_path)
