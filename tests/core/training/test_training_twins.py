"""CLIP learns from pictures over two backgrounds that a background adds the same to all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from unclip.core.data.augment import Augment
from unclip.core.data.batches import PictogramBatches
from unclip.core.data.process import Process
from unclip.core.training.frozen_clip import load_frozen_clip
from unclip.core.training.loop import train
from unclip.core.training.stages import build_recipe
from unclip.core.training.twins import interaction

from ...helpers.stages import changed, stage_settings
from ...helpers.training import pictograms, write_tiny_shards

SIZE, BLOCK = 16, 4


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("twins")
    return stage_settings(write_tiny_shards(folder / "shards"), folder / "none")["clip"]


def batches(twin_block: int | None = BLOCK, rank: int = 0, world: int = 1) -> PictogramBatches:
    augment = Augment(smallest=0.5, turn=10, mirror=0.5)
    return PictogramBatches(
        pictograms(), SIZE, 8, 0, Process(rank, world), augment=augment, twin_block=twin_block
    )


def parts(seed: int, pictures: int = 64, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """What pictures [N, D] and four backgrounds [4, D] add, components of very different variance."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** (-torch.arange(dim) / 2)
    return tuple(torch.randn(n, dim, generator=generator) * scales for n in (pictures, 4))


# --- the data ---


def test_rows_of_a_block_share_a_background_and_their_twins_another() -> None:
    for step in range(6):
        batch = batches()(step)
        assert batch.images.shape == batch.twins.shape == (8, 3, SIZE, SIZE)
        for block in range(2):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            assert len({(each.top, each.bottom) for each in batch.backgrounds[rows]}) == 1
        for row, background in enumerate(batch.backgrounds):
            corner = torch.tensor(background.top) / 255
            assert torch.allclose(batch.images[row, :, 0, 0], corner, atol=0.06)
        assert (batch.images != batch.twins).flatten(1).any(dim=1).all()


def test_a_twin_is_the_picture_over_another_background() -> None:
    """Where a pictogram covers its background, both show the same, whatever its size, place and turn."""
    batch = batches()(3)
    same = ((batch.images - batch.twins).abs() < 1e-5).all(dim=1).flatten(1).sum(dim=1)
    assert (same > 2).all()
    assert (same < SIZE * SIZE).all()


def test_twins_are_shared_out_with_their_rows() -> None:
    whole = batches()(5)
    shares = [batches(rank=rank, world=2)(5) for rank in range(2)]
    for name in ("images", "twins"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
    assert batches(twin_block=None)(5).twins is None


# --- the loss ---


def test_backgrounds_that_add_the_same_to_all_cost_nothing() -> None:
    pictures, backgrounds = parts(0)
    first = pictures + backgrounds[[0, 2]].repeat_interleave(32, dim=0)
    second = pictures + backgrounds[[1, 3]].repeat_interleave(32, dim=0)
    assert interaction(first, second, 32, 1e-6) < 1e-6
    # As one block the two pairs of backgrounds look like what pictures and backgrounds have together.
    assert interaction(first, second, 64, 1e-6) > 0.01


def test_embeddings_that_share_nothing_cost_four() -> None:
    found = interaction(parts(0, 4096)[0], parts(1, 4096)[0], 4096, 1e-9)
    assert found.item() == pytest.approx(4, rel=0.1)


def test_components_of_little_variance_count_as_much_as_others() -> None:
    pictures, _ = parts(0, 512)
    noise = torch.randn(512, generator=torch.Generator().manual_seed(9))

    def mixed(component: int, ridge: float) -> float:
        other = pictures.clone()
        other[:, component] += noise * pictures[:, component].std()
        return interaction(pictures, other, 512, ridge).item()

    assert mixed(5, 1e-9) == pytest.approx(mixed(0, 1e-9), rel=0.15)
    assert mixed(5, 0.01) < 0.1 * mixed(0, 0.01), "what lies far below the ridge counts less"


# --- the recipe ---


def test_a_model_that_learns_from_twins_mixes_pictures_and_backgrounds_less(
    settings: dict, tmp_path: Path
) -> None:
    def mixed(name: str, more: dict[str, Any]) -> float:
        config, recipe = build_recipe("clip", {**changed(settings, "loop.steps", 60), **more}, "test.toml")
        train(recipe, config.loop, tmp_path / name, cpu=True)
        clip = load_frozen_clip(tmp_path / name / "clip.safetensors")
        data = PictogramBatches(pictograms(), SIZE, 12, 1, Process(), twin_block=12)
        batch = data(0)
        return interaction(clip.encode_images(batch.images), clip.encode_images(batch.twins), 12, 0.1).item()

    without = mixed("without", {})
    assert mixed("with", {"twins": {"weight": 4.0, "block": 12, "ridge": 0.1}}) < 0.5 * without


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"twins": {"block": 5}}, "twins.block is 5, expected a divisor of loop.batch_size, which is 12"),
        ({"twins": {"block": 1}}, "twins.block is 1, expected at least 2"),
        ({"twins": {"weight": 0}}, "twins.weight is 0.0, expected more than 0"),
        (
            {"twins": {"block": 6}, "locked_image_tower": True},
            "twins teaches the image tower, which locked_image_tower keeps: drop one",
        ),
        (
            {"twins": {"block": 6}, "data": {"source": "folder", "path": "nowhere"}},
            "twins are of pictograms over backgrounds, but data.source is 'folder'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_recipe("clip", {**settings, **change}, "test.toml")
