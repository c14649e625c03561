"""From pictograms to training batches: rendering, sampling, crops, degradation of the low resolution."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from unclip.core.data import crops as crops_module
from unclip.core.data.batches import Batch, DataConfig, EpochSampler, PictogramBatches
from unclip.core.data.captions import COLOURS, WHITE, Background
from unclip.core.data.crops import CropBatches, PictogramCanvas
from unclip.core.data.degradation import BLUR_KERNEL, BLUR_SIGMA, degrade, gaussian_blur
from unclip.core.data.process import Process
from unclip.core.data.rendering import composite, render_all, render_svg
from unclip.core.training.stages import train_stage

from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip
from ...helpers.training import pictograms, svg, write_tiny_shards

GRADIENT = Background("red to blue gradient", COLOURS["red"], COLOURS["blue"])


# --- rendering ---


def test_pictures_that_no_memory_holds_are_refused_before_they_are_drawn() -> None:
    for size in (4097, 10**18):
        with pytest.raises(ValueError, match=rf"image_size is {size}, .* at most 4096 pixels a side"):
            render_svg(svg("green leaf", "noto"), size)


def test_a_shape_is_rendered_where_it_is() -> None:
    picture = render_svg(svg("green leaf", "noto"), 32)
    assert picture.shape == (32, 32, 4)
    assert picture.dtype == np.uint8
    inside = np.zeros((32, 32), dtype=bool)
    inside[10:22, 4:28] = True
    assert (picture[inside] == (0x20, 0xA0, 0x40, 255)).all()
    assert not picture[~inside][:, 3].any()


@pytest.mark.parametrize(
    ("box", "covered"),
    [("0 0 32 16", (slice(8, 24), slice(0, 32))), ("0 0 16 32", (slice(0, 32), slice(8, 24)))],
)
def test_another_aspect_ratio_is_centred(box: str, covered: tuple[slice, slice]) -> None:
    picture = render_svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><rect width="32" height="32"/></svg>', 32
    )
    expected = np.zeros((32, 32), dtype=bool)
    expected[covered] = True
    assert picture.shape == (32, 32, 4)
    assert (picture[..., 3] == np.where(expected, 255, 0)).all()


def test_many_pictures_are_one_tensor() -> None:
    both = render_all([svg("red apple", "noto"), svg("blue car", "noto")], 16)
    assert both.shape == (2, 4, 16, 16)
    assert torch.equal(both[1].permute(1, 2, 0), torch.tensor(render_svg(svg("blue car", "noto"), 16)))


def random_picture(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 4), dtype=np.uint8)


def as_tensor(picture: np.ndarray) -> Tensor:
    return torch.tensor(picture).permute(2, 0, 1)[None]


def test_compositing_is_pillows() -> None:
    colours = [(200, 30, 60), (10, 240, 90)]
    pictures = [random_picture(16, seed) for seed in range(2)]
    expected = [
        np.asarray(
            Image.alpha_composite(
                Image.new("RGBA", (16, 16), (*colour, 255)), Image.fromarray(picture)
            ).convert("RGB")
        )
        for colour, picture in zip(colours, pictures, strict=True)
    ]
    rgba = torch.cat([as_tensor(picture) for picture in pictures])
    found = composite(rgba, torch.tensor(colours), torch.tensor(colours))
    reference = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2) / 255
    assert (found - reference).abs().max() < 1.01 / 255  # Pillow rounds to whole levels
    premultiplied = rgba[:, :3] / 255 + (1 - rgba[:, 3:] / 255) * torch.tensor(colours)[..., None, None] / 255
    assert (premultiplied - reference).abs().max() > 0.1


def test_a_gradient_runs_from_top_to_bottom() -> None:
    clear = torch.zeros(1, 4, 5, 3, dtype=torch.uint8)
    found = composite(clear, torch.tensor([[0, 100, 255]]), torch.tensor([[200, 100, 55]]))
    expected = torch.tensor([[0, 50, 100, 150, 200], [100] * 5, [255, 205, 155, 105, 55]]) / 255
    assert torch.allclose(found[0], expected[..., None].expand(-1, -1, 3), atol=1e-6)


# --- batches ---


def test_every_item_comes_once_an_epoch_in_a_new_order() -> None:
    sampler = EpochSampler(items=12, batch_size=4, seed=3)
    epochs = [np.concatenate([sampler(3 * epoch + step) for step in range(3)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = EpochSampler(items=12, batch_size=4, seed=4)
    assert not np.array_equal(sampler(0), other(0))


def test_a_batch_may_cross_epochs() -> None:
    sampler = EpochSampler(items=5, batch_size=4, seed=0)
    stream = np.concatenate([sampler(step) for step in range(5)])
    for epoch in range(4):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == list(range(5))


def test_processes_share_a_batch_without_overlap() -> None:
    alone = batches()(5)
    shares = [batches(rank=rank, world=3)(5) for rank in range(3)]
    assert torch.equal(torch.cat([share.images for share in shares]), alone.images)
    assert [text for share in shares for text in share.captions] == alone.captions
    assert torch.equal(torch.cat([share.indices for share in shares]), alone.indices)
    assert same(batches(rank=1, world=3).whole(5), alone)


def test_a_batch_that_cannot_be_shared_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"loop\.batch_size is 6, which 4 processes cannot share out evenly"):
        batches(rank=1, world=4)


def batches(seed: int = 0, rank: int = 0, world: int = 1, style_named: float = 0.75) -> PictogramBatches:
    return PictogramBatches(pictograms(), 16, 6, seed, Process(rank, world), style_named)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and one.captions == other.captions


def test_a_batch_is_a_function_of_the_step() -> None:
    one, other = batches(), batches()
    for step in (7, 0, 3):
        other(step + 1)
        assert same(one(step), other(step))
    assert not same(one(0), one(2))  # the same pictures in another order at most, on other backgrounds
    assert not same(one(0), batches(seed=1)(0))
    assert not same(one(0), batches(rank=1, world=2)(0))


def test_pictures_captions_and_backgrounds_belong_together() -> None:
    data = batches()
    for step in range(8):
        batch = data(step)
        assert batch.images.shape == (6, 3, 16, 16)
        assert 0 <= batch.images.min() <= batch.images.max() <= 1
        for image, text, background in zip(batch.images, batch.captions, batch.backgrounds, strict=True):
            corner = torch.tensor(background.top) / 255
            assert torch.allclose(image[:, 0, 0], corner, atol=1e-6)
            assert background.name in text
            # The rectangle of each concept covers its own place in its own colour.
            for concept, place in {"red apple": (8, 8), "blue car": (10, 8), "black crow": (10, 7)}.items():
                if concept in text:
                    colour = {"red apple": 0xD02020, "blue car": 0x2040D0, "black crow": 0x202020}[concept]
                    levels = torch.tensor([colour >> 16, colour >> 8 & 255, colour & 255]) / 255
                    assert torch.allclose(image[:, place[0], place[1]], levels, atol=1e-6)


def test_the_style_is_named_as_often_as_asked() -> None:
    def named(share: float) -> float:
        texts = [text for step in range(40) for text in batches(style_named=share)(step).captions]
        words = ("noto style", "softly shaded", "soft", "twemoji style", "plain vector", "simple")
        return sum(any(word in text for word in words) for text in texts) / len(texts)

    assert named(0.0) == 0
    assert named(1.0) == 1
    assert abs(named(0.5) - 0.5) < 0.12


def test_white_backgrounds_come_as_often_as_asked() -> None:
    def white(share: float) -> float:
        data = PictogramBatches(pictograms(), 16, 6, 0, Process(), white=share)
        drawn = [background for step in range(60) for background in data(step).backgrounds]
        return sum(background.top == background.bottom == WHITE for background in drawn) / len(drawn)

    assert white(0.0) == 0
    assert abs(white(0.2) - 0.2) < 0.08
    assert abs(white(0.8) - 0.8) < 0.08


@pytest.mark.parametrize("white", [-0.1, 0.95])
def test_a_share_of_white_out_of_range_is_named(white: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.white is {white}, expected 0 to 0\.9"):
        DataConfig("shards", white=white)


# --- crops ---


def crop_batches(margin: int, pictures: int = 12, **options) -> CropBatches:
    settings = {"crop": 16, "align": 4, "batch_size": 8, "seed": 0, "process": Process(), **options}
    return CropBatches(PictogramCanvas(pictograms()[:pictures], 64), 64, margin=margin, **settings)


def test_crops_that_cannot_be_shared_out_say_how_many_can() -> None:
    message = (
        "loop.batch_size is 8, which 4 processes cannot share out evenly, 4 crops of each picture together"
    )
    with pytest.raises(ValueError, match=f"^{message}: take a multiple of 16,"):
        crop_batches(4, batch_size=8, process=Process(0, 4))


def test_crops_are_a_function_of_the_step() -> None:
    found = crop_batches(margin=8)(5).images
    assert found.shape == (8, 3, 32, 32)
    assert torch.equal(found, crop_batches(margin=8)(5).images)
    assert not torch.equal(found, crop_batches(margin=8)(6).images)
    shares = [crop_batches(margin=8, process=Process(rank, 2))(5).images for rank in range(2)]
    assert torch.equal(torch.cat(shares), found)


def test_crops_lie_on_white_as_often_as_asked() -> None:
    def white(share: float) -> float:
        data = crop_batches(margin=0, white=share)
        pictures = torch.cat([data(step).images for step in range(20)])
        return (pictures.flatten(1).amax(dim=1) == 1).float().mean().item()

    assert white(0.0) < 0.3 < white(0.9)


def test_a_margin_surrounds_the_same_crop() -> None:
    for step in range(4):
        wide, bare = crop_batches(margin=8)(step).images, crop_batches(margin=0)(step).images
        assert torch.allclose(wide[..., 8:-8, 8:-8], bare, atol=1e-6)


def test_crops_are_windows_of_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its gradient, and with edges repeated around it."""
    monkeypatch.setattr(crops_module, "random_background", lambda rng, white: GRADIENT)
    top, bottom = torch.tensor([GRADIENT.top]), torch.tensor([GRADIENT.bottom])
    whole = [
        torch.nn.functional.pad(
            composite(as_tensor(render_svg(each.svg, 64)), top, bottom), (8,) * 4, mode="replicate"
        )[0]
        for each in pictograms()[:2]
    ]
    windows = torch.stack(
        [
            picture[:, y : y + 32, x : x + 32]
            for picture in whole
            for y in range(0, 49, 4)
            for x in range(0, 49, 4)
        ]
    )
    places = []
    for step in range(6):
        for crop in crop_batches(margin=8, pictures=2)(step).images:
            distance, place = (windows - crop).abs().amax(dim=(1, 2, 3)).min(dim=0)
            assert distance < 1e-5
            places.append(place.item() % 169)
    assert len(set(places)) > 20
    assert {place // 13 for place in places} & {0, 1}  # also at the upper edge, which the margin repeats


def test_crops_favour_outlines() -> None:
    def with_outline(margin: int = 0) -> float:
        data = crop_batches(margin, batch_size=16)
        kinds = [crop.flatten(1) for step in range(12) for crop in data(step).images]
        # Columns of an empty crop differ from each other in no row.
        flat = [(crop.view(3, 16, 16).std(dim=2).amax() > 0.02).item() for crop in kinds]
        return sum(flat) / len(flat)

    assert with_outline() > 0.6  # a uniform choice gives about 0.4


def test_crops_per_picture_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="batch_size 6 is not a multiple of 4 crops per picture"):
        crop_batches(0, batch_size=6)


# --- degradation ---


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_blur_is_the_gaussian_of_the_paper() -> None:
    impulse = torch.zeros(1, 3, 7, 7)
    impulse[:, :, 3, 3] = 1
    side = math.exp(-1 / (2 * 0.6**2))
    weights = torch.tensor([side, 1, side]) / (1 + 2 * side)
    expected = torch.zeros(7, 7)
    expected[2:5, 2:5] = torch.outer(weights, weights)
    found = gaussian_blur(impulse, BLUR_KERNEL, BLUR_SIGMA)
    assert torch.allclose(found, expected.expand(1, 3, 7, 7), atol=1e-6)
    assert not torch.allclose(gaussian_blur(impulse, BLUR_KERNEL, BLUR_SIGMA + 0.1), found, atol=1e-2)

    drawn = [degrade(impulse, "blur", generator(seed))[0, 0, 3, 3].item() for seed in range(20)]
    weakest, strongest = max(drawn), min(drawn)
    assert weakest > 0.99  # next to no blur
    assert expected[3, 3] <= strongest < expected[3, 3] + 0.1


def test_the_blur_keeps_a_plain_picture_up_to_its_edge() -> None:
    plain = torch.full((2, 3, 8, 5), 0.37)
    assert torch.allclose(gaussian_blur(plain, 7, 1.2), plain, atol=1e-6)


def test_bsr_is_a_function_of_its_generator() -> None:
    low = torch.rand(2, 3, 24, 24, generator=generator(9)) * 2 - 1
    found = degrade(low, "bsr", generator(1))
    assert found.shape == low.shape
    assert found.abs().max() <= 1
    assert torch.equal(found, degrade(low, "bsr", generator(1)))
    assert (found - degrade(low, "bsr", generator(2))).abs().max() > 0.01
    assert abs(found.mean() - low.mean()) < 0.02
    assert all((degrade(low, "bsr", generator(seed)) - low).abs().mean() > 0.01 for seed in range(5))


# --- who makes them ---


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "upsampler"])
def test_worker_processes_draw_what_a_thread_draws(stage: str, tmp_path: Path) -> None:
    settings = stage_settings(write_tiny_shards(tmp_path / "shards"), write_tiny_clip(tmp_path))[stage]
    settings = changed(settings, "loop.steps", 3)
    if stage != "upsampler":
        augment = {"smallest": 0.6, "turn": 5, "recolour": 0.5}
        settings = changed(settings, "data", {**settings["data"], "augment": augment})
    losses = []
    for workers in (0, 2):
        each = changed(settings, "data", {**settings["data"], "workers": workers})
        config = write_config(tmp_path / f"{workers}.toml", each)
        assert train_stage(stage, config, tmp_path / str(workers), cpu=True)
        losses.append([row["loss"] for row in read_log(tmp_path / str(workers) / "log.jsonl")])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
