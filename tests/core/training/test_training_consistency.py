"""A CLIP image tower that learns to say the same of a picture whatever lies behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from unclip.core.data.batches import load_pictograms
from unclip.core.data.captions import COLOURS, WHITE, Background, plain_backgrounds
from unclip.core.data.rendering import composite, render_all
from unclip.core.data.settings import DataConfig
from unclip.core.formats.native.checkpoints import load_stage
from unclip.core.training.consistency import BackgroundConsistency, ConsistencyConfig
from unclip.core.training.frozen_clip import load_frozen_clip
from unclip.core.training.loop import train
from unclip.core.training.stages import build_recipe

from ...helpers.stages import changed, stage_settings, write_tiny_clip
from ...helpers.training import write_tiny_shards

PLAIN = Background("white", WHITE, WHITE)
BLUE = Background("blue", COLOURS["blue"], COLOURS["blue"])
RED = Background("red", COLOURS["red"], COLOURS["red"])
GRADIENT = Background("blue to red gradient", COLOURS["blue"], COLOURS["red"])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("consistency")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


@pytest.fixture(scope="module")
def pixels(settings: dict) -> torch.Tensor:
    pictograms = load_pictograms(DataConfig(settings["clip"]["data"]["shards"]))
    return render_all((pictogram.svg for pictogram in pictograms), 16)


@pytest.fixture(scope="module")
def consistency(settings: dict, pixels: torch.Tensor) -> BackgroundConsistency:
    return BackgroundConsistency(ConsistencyConfig(settings["prior"]["clip"], weight=2.0), pixels)


def embed(settings: dict, pixels: torch.Tensor, background: Background) -> torch.Tensor:
    """What the teacher says of all pictures on one background, [N, D]."""
    ends = (torch.tensor([end]).expand(len(pixels), -1) for end in (background.top, background.bottom))
    return load_frozen_clip(Path(settings["prior"]["clip"])).encode_images(composite(pixels, *ends))


def test_on_white_the_teacher_is_right(
    settings: dict, pixels: torch.Tensor, consistency: BackgroundConsistency
) -> None:
    indices = torch.tensor([3, 0, 7])
    targets = consistency.targets(indices, [PLAIN] * 3)
    torch.testing.assert_close(targets, embed(settings, pixels, PLAIN)[indices], rtol=1e-5, atol=1e-6)


def test_a_background_moves_all_pictures_alike(
    settings: dict, pixels: torch.Tensor, consistency: BackgroundConsistency
) -> None:
    on_white = embed(settings, pixels, PLAIN)
    indices = torch.arange(len(pixels))
    offsets = {}
    for background in (BLUE, RED):
        mean = (embed(settings, pixels, background) - on_white).mean(dim=0)
        assert mean.norm() > 0.01, "the background makes a difference"
        expected = consistency.space.in_convention(on_white + mean)
        found = consistency.targets(indices, [background] * len(indices))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        offsets[background] = mean
    between = consistency.space.in_convention(on_white + (offsets[BLUE] + offsets[RED]) / 2)
    found = consistency.targets(indices, [GRADIENT] * len(indices))
    torch.testing.assert_close(found, between, rtol=1e-4, atol=1e-5)


def test_every_background_of_the_data_has_a_target(consistency: BackgroundConsistency) -> None:
    backgrounds = plain_backgrounds()
    targets = consistency.targets(torch.zeros(len(backgrounds), dtype=torch.long), backgrounds)
    assert targets.isfinite().all()
    assert len(targets.unique(dim=0)) == len(backgrounds)


def test_the_error_is_weighted_and_zero_at_the_target(
    settings: dict, pixels: torch.Tensor, consistency: BackgroundConsistency
) -> None:
    target = consistency.targets(torch.arange(4), [BLUE, RED, PLAIN, GRADIENT])
    assert consistency(target, target) == 0
    double = BackgroundConsistency(ConsistencyConfig(settings["prior"]["clip"], weight=4.0), pixels)
    error = consistency(target.flip(0), target)
    assert error > 0
    torch.testing.assert_close(double(target.flip(0), target), 2 * error)


def test_a_pupil_comes_nearer_and_keeps_the_statistics_of_its_teacher(settings: dict, tmp_path: Path) -> None:
    first = changed(settings["clip"], "loop.steps", 10)
    config, recipe = build_recipe("clip", first, "test.toml")
    train(recipe, config.loop, tmp_path / "teacher", cpu=True)
    teacher = tmp_path / "teacher" / "clip.safetensors"
    again = changed(changed(first, "loop.start_from", str(teacher)), "loop.steps", 60)
    again |= {"consistency": {"teacher": str(teacher), "weight": 10.0}, "space_id": "unclip/second"}
    config, recipe = build_recipe("clip", again, "test.toml")
    images, _, target, _ = recipe.batch(200)

    def error_of(file: Path) -> float:
        return recipe.consistency(load_frozen_clip(file).encode_images(images), target).item()

    before = error_of(teacher)
    train(recipe, config.loop, tmp_path / "pupil", cpu=True)
    pupil = tmp_path / "pupil" / "clip.safetensors"
    assert error_of(pupil) < 0.5 * before
    spaces = [load_stage(file).space for file in (teacher, pupil)]
    assert [space.id for space in spaces] == ["unclip/test", "unclip/second"]
    assert spaces[0].mean == spaces[1].mean
    assert spaces[0].std == spaces[1].std


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0.0}, "consistency.weight is 0.0, expected more than 0"),
        ({"ridge": -1.0}, "consistency.ridge is -1.0, expected more than 0"),
        ({"teacher": "nowhere.safetensors"}, "no CLIP model at nowhere.safetensors"),
    ],
)
def test_wrong_settings_are_named(settings: dict, values: dict[str, Any], message: str) -> None:
    table = {"teacher": settings["prior"]["clip"], **values}
    with pytest.raises(ValueError, match=message):
        build_recipe("clip", settings["clip"] | {"consistency": table}, "test.toml")


def test_a_teacher_of_another_width_and_a_locked_tower_are_named(settings: dict) -> None:
    table = {"consistency": {"teacher": settings["prior"]["clip"]}}  # of 32 values; the pupil has 16
    with pytest.raises(ValueError, match=r"embed_dim is 16, but .* consistency.teacher have 32 values"):
        build_recipe("clip", settings["clip"] | table, "test.toml")
    locked = changed(settings["clip"], "locked_image_tower", True)
    with pytest.raises(ValueError, match=r"consistency teaches the image tower, which locked_image_tower"):
        build_recipe("clip", locked | table, "test.toml")
