"""Damaged files of Kandinsky's layouts: each is told by its own name, with the key and with what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from unclip.core.formats.load import load_any_bundle, load_any_stage

from ...helpers import kandinsky_files as files
from ...helpers import published_models as published

REMEDY = r"[Dd]ownload|[Gg]et (the|it)|again|[Cc]hoose|expected|[Pp]ut"
SOURCES = {
    "kandinsky-2-2-prior": ("prior", "text_encoder", "image_encoder"),
    "kandinsky-2-2-decoder": ("unet", "movq"),
    "kandinsky-2-2-decoder-inpaint": ("unet",),
    "kandinsky-2-2-controlnet-depth": ("unet",),
    "kandinsky-2-1": ("unet", "movq", "text_encoder"),
}
"""Model → the folders of its networks; what one has as another has it is tried once."""
JSONS = {
    "kandinsky-2-2-prior": (
        "model_index.json",
        "prior/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "image_encoder/config.json",
        "tokenizer/vocab.json",
    ),
    "kandinsky-2-2-decoder": ("unet/config.json", "movq/config.json", "scheduler/scheduler_config.json"),
    "kandinsky-2-1": ("text_encoder/config.json", "tokenizer/tokenizer.json"),
}
NETWORKS = [(model, part) for model, parts in SOURCES.items() for part in parts]
DOCUMENTS = [(model, name) for model, names in JSONS.items() for name in names]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    published.write_prior(folder / "kandinsky-2-2-prior")
    for name in SOURCES:
        if name != "kandinsky-2-2-prior":
            published.write_decoder(folder / name)
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(whole / name, tmp_path / name))


def refused(path: Path, load: Callable[[], object], *named: str) -> str:
    """The message of the error that loading ends in; it names the file, what else is given, and a remedy."""
    with pytest.raises(ValueError) as error:
        load()
    message = str(error.value)
    assert str(path) in message, message
    for name in named:
        assert name in message, message
    assert re.search(REMEDY, message), message
    return message


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def first_matrix(state: dict[str, Tensor]) -> str:
    statistics = ("clip_mean", "clip_std")  # without which a prior is an operator
    return next(name for name, value in sorted(state.items()) if value.ndim > 1 and name not in statistics)


@pytest.mark.parametrize(("model", "part"), NETWORKS)
@pytest.mark.parametrize("change", ["missing", "left over", "shape", "not finite"])
def test_a_network_with_other_tensors(copied, model: str, part: str, change: str) -> None:
    folder = copied(model)
    path = weights_of(folder / part)
    state = load_file(path)
    name = first_matrix(state)
    if change == "missing":
        del state[name]
    elif change == "left over":
        name = "stranger.weight"
        state[name] = torch.zeros(2, 2)
    elif change == "shape":
        state[name] = torch.zeros(3, 5)
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    save_file(state, path, {"format": "pt"})
    refused(path, lambda: load_any_bundle(folder), *([name] if change != "shape" else []))


@pytest.mark.parametrize(("model", "part"), NETWORKS)
@pytest.mark.parametrize("change", ["empty", "cut", "text"])
def test_a_file_of_weights_that_is_none(copied, model: str, part: str, change: str) -> None:
    folder = copied(model)
    path = weights_of(folder / part)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"<html>not found"}[change])
    refused(path, lambda: load_any_bundle(folder))


@pytest.mark.parametrize(("model", "part"), NETWORKS)
def test_a_folder_without_its_weights(copied, model: str, part: str) -> None:
    folder = copied(model)
    weights_of(folder / part).unlink()
    refused(folder / part, lambda: load_any_bundle(folder))


@pytest.mark.parametrize(("model", "name"), DOCUMENTS)
@pytest.mark.parametrize("content", ["", "[]", '{"a": ', "\x00\xff"])
def test_a_json_file_that_is_none(copied, model: str, name: str, content: str) -> None:
    folder = copied(model)
    (folder / name).write_bytes(content.encode("latin-1"))
    refused(folder / name, lambda: load_any_bundle(folder))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("unet/config.json", "attention_head_dim", "wide"),
        ("unet/config.json", "sample_size", [64, 32]),
        ("unet/config.json", "act_fn", "gelu"),
        ("movq/config.json", "norm_type", "group"),
        ("scheduler/scheduler_config.json", "beta_schedule", "sigmoid"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow"),
        ("scheduler/scheduler_config.json", "beta_start", "small"),
        ("scheduler/scheduler_config.json", "clip_sample_range", -1.0),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("scheduler/scheduler_config.json", "thresholding", True),
    ],
)
def test_a_setting_that_is_none(copied, name: str, key: str, value: object) -> None:
    folder = copied("kandinsky-2-2-decoder")
    files.change_json(folder / name, **{key: value})
    refused(folder / name, lambda: load_any_bundle(folder), key)


@pytest.mark.parametrize("file", ["decoder_fp16.ckpt", "movq_final.ckpt"])
@pytest.mark.parametrize("change", ["missing", "left over", "shape", "empty", "cut"])
def test_kandinsky21s_own_files(tmp_path, file: str, change: str) -> None:
    decoder = files.write_original_21(files.tiny_21(), tmp_path / "files")
    path = decoder.with_name(file)
    state = torch.load(path, weights_only=True)
    name = {"decoder_fp16.ckpt": "time_embed.0.weight", "movq_final.ckpt": "encoder.conv_in.bias"}[file]
    if change == "missing":
        del state[name]
    elif change == "left over":
        name = "stranger"
        state[name] = torch.zeros(2)
    elif change == "shape":
        state[name] = torch.zeros(3, 5)
    if change in ("empty", "cut"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 if change == "cut" else 0])
        refused(path, lambda: load_any_stage(decoder))
        return
    torch.save(state, path)
    refused(path, lambda: load_any_stage(decoder), *([name] if change != "shape" else []))
