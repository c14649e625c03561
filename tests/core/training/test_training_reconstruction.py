"""CLIP learns embeddings from which small pictures can be painted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from unclip.core.data.batches import PictogramBatches, in_unit_range
from unclip.core.data.draws import StepGenerator
from unclip.core.data.process import Process
from unclip.core.formats.files.safetensors_io import read_tensor_file
from unclip.core.training.frozen_clip import load_frozen_clip
from unclip.core.training.loop import train
from unclip.core.training.stages import build_recipe

from ...helpers.stages import changed, stage_settings
from ...helpers.training import pictograms, write_tiny_shards

SIZE, SIDE = 16, 4
ASKED = {"reconstruction": {"weight": 8.0, "side": SIDE}}


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


def test_a_step_in_parts_has_the_loss_and_the_gradient_of_the_whole(settings: dict) -> None:
    config, recipe = build_recipe("clip", {**settings, **ASKED}, "test.toml")
    rows, network = config.loop.batch_size, recipe.network
    images, ids, *_ = recipe.batch(0)
    generator = StepGenerator(torch.device("cpu"), rows, slice(0))

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: value.grad.clone() for name, value in network.named_parameters()}
        network.zero_grad()
        return found

    whole = recipe.loss(network, (images, ids, None, None), generator)
    whole.backward()
    of_whole = gradients()
    parts = [(images[part], ids[part], None, None) for part in (slice(0, rows // 2), slice(rows // 2, rows))]
    part_loss = recipe.part_losses(network, parts, torch.device("cpu"))
    losses = [part_loss(number) / 2 for number in range(2)]
    sum(losses).backward()
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-5)
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, of_whole[name], atol=1e-5), name
    assert of_whole["painter.proj_in.weight"].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reconstruction": {"weight": 0}}, "reconstruction.weight is 0.0, expected more than 0"),
        ({"reconstruction": {"side": 0}}, "reconstruction.side is 0, expected at least 1"),
        (
            {"reconstruction": {}, "locked_image_tower": True},
            "reconstruction teaches the image tower, which locked_image_tower keeps: drop one",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_recipe("clip", {**settings, **change}, "test.toml")
