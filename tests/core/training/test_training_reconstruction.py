"""CLIP learns embeddings from which small pictures can be painted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from unclip.core.data.batches import PictogramBatches, in_unit_range
from unclip.core.data.process import Process
from unclip.core.formats.files.safetensors_io import read_tensor_file
from unclip.core.training.frozen_clip import load_frozen_clip
from unclip.core.training.loop import train
from unclip.core.training.stages import build_recipe

from ...helpers.stages import changed, stage_settings
from ...helpers.training import pictograms, write_tiny_shards

SIZE, SIDE = 16, 4
ASKED: dict[str, Any] = {"reconstruction": {"weight": 8.0, "side": SIDE}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reconstruction")
    return stage_settings(write_tiny_shards(folder / "shards"), folder / "none")["clip"]


def left_unknown(file: Path) -> float:
    """The share of the variance of small pictures that no linear map of their embeddings tells."""
    clip, data = load_frozen_clip(file), PictogramBatches(pictograms(), SIZE, 12, 1, Process())
    images = torch.cat([in_unit_range(data(step).images) for step in range(40)])
    seen = F.adaptive_avg_pool2d(images, SIDE).flatten(1).double()
    known = torch.cat([clip.encode_images(images).double(), torch.ones(len(images), 1).double()], dim=1)
    half = len(images) // 2
    found = torch.linalg.lstsq(known[:half], seen[:half]).solution
    return ((seen[half:] - known[half:] @ found).square().sum() / seen[half:].var(0).sum() / half).item()


def test_embeddings_tell_more_of_what_pictures_look_like(settings: dict, tmp_path: Path) -> None:
    def unknown(name: str, more: dict[str, Any]) -> float:
        config, recipe = build_recipe("clip", {**changed(settings, "loop.steps", 120), **more}, "test.toml")
        train(recipe, config.loop, tmp_path / name, cpu=True)
        return left_unknown(tmp_path / name / "clip.safetensors")

    without, with_it = unknown("without", {}), unknown("with", ASKED)
    assert with_it < 0.8 * without
    names = [
        set(read_tensor_file(tmp_path / name / "clip.safetensors").tensors) for name in ("without", "with")
    ]
    assert names[0] == names[1], "the painter is no part of the stage"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reconstruction": {"weight": 0}}, "reconstruction.weight is 0.0, expected more than 0"),
        ({"reconstruction": {"side": 0}}, "reconstruction.side is 0, expected at least 1"),
        (
            {"reconstruction": {"side": 17}},
            "reconstruction.side is 17, expected at most model.vision.image_size, which is 16",
        ),
        (
            {"reconstruction": {}, "locked_image_tower": True},
            "reconstruction teaches the image tower, which locked_image_tower keeps: drop one",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_recipe("clip", {**settings, **change}, "test.toml")
