"""Pictograms in many sizes, places, turns, mirror images and colours."""

from __future__ import annotations

import colorsys
import random
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import adjust_hue
from unclip.core.data.augment import (
    Augment,
    Augmentation,
    Colour,
    Variant,
    colour_of,
    recoloured,
    shows_another_mirrored,
    shows_the_same_mirrored,
)
from unclip.core.data.batches import PictogramBatches
from unclip.core.data.captions import COLOURS
from unclip.core.data.opening import open_crops
from unclip.core.data.pictograms import Pictogram
from unclip.core.data.process import Process
from unclip.core.data.settings import DataConfig

from ...helpers.training import pictograms, write_tiny_shards

SIZE = 32
STILL = Variant(1.0, (0.0, 0.0), 0.0, False, "", False, "")
ALL = Augment(smallest=0.5, turn=10, mirror=0.5, recolour=0.3, name_colour=0.3, synonym=0.5)


def square(colour: tuple[int, int, int], other: tuple[int, int, int] | None = None) -> Tensor:
    """[4, S, S]: a square in the middle of nothing, its left half in another colour."""
    picture = torch.zeros(4, 2 * SIZE, 2 * SIZE, dtype=torch.uint8)
    picture[:, 16:48, 16:48] = torch.tensor((*colour, 255), dtype=torch.uint8)[:, None, None]
    if other is not None:
        picture[:3, 16:48, 16:32] = torch.tensor(other, dtype=torch.uint8)[:, None, None]
    return picture


def paint(picture: Tensor, variant: Variant) -> Tensor:
    pixels = picture[None]
    augmentation = Augmentation(Augment(), pictograms()[:1], pixels)
    return augmentation.paint(pixels, [0], [variant], SIZE)[0]


def batches(augment: Augment | None, rank: int = 0, world: int = 1) -> PictogramBatches:
    return PictogramBatches(pictograms(), SIZE, 6, 0, Process(rank, world), augment=augment)


# --- what is painted ---


@pytest.mark.parametrize("rows", [1, 8, 19])
def test_the_rows_of_a_batch_are_painted_as_each_of_them_is(rows: int) -> None:
    data = batches(ALL)
    rng, indices = random.Random(0), [row % len(data.pictograms) for row in range(rows)]
    assert data.augmentation is not None
    variants = [data.augmentation.draw(index, rng) for index in indices]
    together = data.augmentation.paint(data.pixels[indices], indices, variants, SIZE)
    for row, (index, variant) in enumerate(zip(indices, variants, strict=True)):
        alone = data.augmentation.paint(data.pixels[[index]], [index], [variant], SIZE)
        assert torch.allclose(together[row], alone[0], atol=1e-6)


def test_what_does_not_vary_is_the_picture_itself() -> None:
    painted = paint(square((200, 30, 30)), STILL)
    assert painted[3].sum().item() == pytest.approx(16 * 16, rel=1e-4)
    assert torch.allclose(
        painted[:3, 8:24, 8:24], (torch.tensor([200, 30, 30]) / 255)[:, None, None], atol=1e-5
    )


@pytest.mark.parametrize("scale", [0.5, 0.75])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.25, -0.125), (-0.25, 0.25)])
def test_size_and_place_are_those_drawn(scale: float, place: tuple[float, float]) -> None:
    alpha = paint(square((200, 30, 30)), replace(STILL, scale=scale, place=place))[3]
    assert alpha.sum().item() == pytest.approx((16 * scale) ** 2, rel=0.01)
    middles = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    found = ((alpha.sum(dim=0) @ middles), (alpha.sum(dim=1) @ middles))
    assert [value.item() / alpha.sum().item() for value in found] == pytest.approx(place, abs=0.01)


def test_a_mirror_image_has_left_and_right_exchanged() -> None:
    halves = square((200, 30, 30), (30, 30, 200))
    assert torch.allclose(
        paint(halves, replace(STILL, mirrored=True)), paint(halves, STILL).flip(-1), atol=1e-5
    )


def test_a_quarter_turn_goes_counterclockwise() -> None:
    halves = square((200, 30, 30), (30, 30, 200))
    turned = paint(halves, replace(STILL, turn=90))
    assert torch.allclose(turned, paint(halves, STILL).rot90(1, (-2, -1)), atol=1e-4)


@pytest.mark.parametrize(
    "name", ["red", "yellow", "green", "blue", "purple", "pink", "black", "white", "gray"]
)
def test_a_recoloured_picture_has_the_colour_of_the_name(name: str) -> None:
    own = colour_of(square(COLOURS["orange"]))
    assert own is not None and own.name == "orange"
    painted = recoloured(square(COLOURS["orange"])[None, :3].float() / 255, [own], [name])[0]
    found = colour_of(torch.cat([(255 * painted).byte(), square(COLOURS["orange"])[3:]]))
    assert found is not None and found.name == name


def test_hues_turn_as_torchvision_turns_them() -> None:
    pictures = torch.rand(len(COLOURS), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures[:, 1, :4] = pictures[:, 0, :4]  # of two equal channels each is the largest, or the least
    pictures[:, 2, 4:8] = pictures[:, 1, 4:8]
    pictures[:, :, 8] = 0.5
    for name in COLOURS:
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in COLOURS[name]))
        owns = [Colour(n / len(COLOURS), saturation, value, "red") for n in range(len(COLOURS))]
        expected = torch.stack(
            [
                adjust_hue(picture, (hue - own.hue + 0.5) % 1 - 0.5) if saturation > 0.15 else picture
                for picture, own in zip(pictures, owns, strict=True)
            ]
        )
        assert torch.allclose(recoloured(pictures, owns, [name] * len(owns)), expected, atol=1e-5), name


def test_colours_are_told_only_where_most_has_one() -> None:
    assert colour_of(square((240, 240, 240))) == Colour(0.0, 0.0, pytest.approx(240 / 255), "white")
    assert colour_of(square((30, 30, 30))).name == "black"
    assert colour_of(square(COLOURS["red"], COLOURS["green"])) is None  # two hues
    assert colour_of(torch.zeros(4, 8, 8, dtype=torch.uint8)) is None  # nothing


# --- what is drawn ---


def pictogram(concept: str, group: str = "objects", keywords: tuple[str, ...] = ()) -> Pictogram:
    return Pictogram(f"noto/{concept}", concept, "noto", group, keywords, "<svg/>")


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (pictogram("guitar"), True),
        (pictogram("right arrow"), False),
        (pictogram("alarm clock", keywords=("clock",)), False),
        (pictogram("peace", group="symbols"), False),
        (pictogram("leftwards hand"), False),
        (pictogram("hundred points"), False),
        (pictogram("1st place medal"), False),
        (pictogram("waxing crescent moon"), False),
    ],
)
def test_letters_signs_and_directions_are_not_mirrored(given: Pictogram, same: bool) -> None:
    assert shows_the_same_mirrored(given) is same
    augmentation = Augmentation(Augment(mirror=1.0), [given], square((9, 9, 9))[None])
    assert augmentation.draw(0, random.Random(0)).mirrored is same


def test_the_mirror_image_of_one_thing_is_not_shown_for_another() -> None:
    """Two phases of the moon, a round one, and one that leans but has no counterpart."""
    left = square((250, 250, 250), (20, 20, 20))
    leaning = square((40, 90, 200))
    leaning[3, 16:30, 16:30] = 0
    pixels = torch.stack([left, left.flip(-1), square((250, 250, 250)), leaning])
    given = [pictogram(name) for name in ("first moon", "last moon", "full moon", "boat")]
    assert shows_another_mirrored(given, pixels) == [True, True, False, False]
    assert shows_another_mirrored([given[0], replace(given[1], style="twemoji")], pixels[:2]) == [False] * 2
    assert shows_another_mirrored([given[0], given[0]], pixels[:2]) == [False] * 2
    augmentation = Augmentation(Augment(mirror=1.0), given, pixels)
    drawn = [augmentation.draw(index, random.Random(0)).mirrored for index in range(4)]
    assert drawn == [False, False, True, True]


def test_a_face_with_a_dark_mouth_is_still_yellow() -> None:
    face = square(COLOURS["yellow"])
    face[:3, 34:46, 18:46] = torch.tensor((110, 60, 10), dtype=torch.uint8)[:, None, None]
    assert colour_of(face).name == "yellow"
    dull = square((80, 60, 110))  # nearer to gray than to any hue
    assert colour_of(dull).name == "purple"


def test_a_pictogram_stays_inside_the_picture() -> None:
    augmentation = Augmentation(ALL, [pictogram("guitar")], square((200, 30, 30))[None])
    rng = random.Random(0)
    for _ in range(200):
        variant = augmentation.draw(0, rng)
        assert 0.5 <= variant.scale <= 1 and abs(variant.turn) <= 10
        assert all(abs(value) + variant.scale <= 1 + 1e-9 for value in variant.place)


def test_names_of_colours_do_not_meet_another() -> None:
    for name in ("red apple", "gold medal"):
        augmentation = Augmentation(Augment(recolour=1), [pictogram(name)], square((200, 30, 30))[None])
        assert not any(augmentation.draw(0, random.Random(seed)).colour for seed in range(20))
    augmentation = Augmentation(Augment(name_colour=1), [pictogram("apple")], square(COLOURS["red"])[None])
    variant = augmentation.draw(0, random.Random(0))
    assert (variant.colour, variant.recoloured) == ("red", False)


def test_a_synonym_is_mostly_one_that_few_others_have() -> None:
    several = [pictogram("taxi", keywords=("cab", "vehicle"))]
    several += [pictogram(f"car {n}", keywords=("vehicle",)) for n in range(15)]
    augmentation = Augmentation(Augment(synonym=1), several, square((9, 9, 9)).expand(16, -1, -1, -1))
    drawn = [augmentation.draw(0, random.Random(seed)).synonym for seed in range(400)]
    assert drawn.count("cab") / 400 == pytest.approx(0.8, abs=0.06)  # 1 : 1/√16


def test_surplus_words_are_of_what_the_group_does_not_show() -> None:
    group = {"dog": "animals", "cat": "animals", "rain": "travel", "bus": "travel"}
    known = {"dog": ("pet",), "cat": ("pet", "sleepy head"), "rain": ("weather", "blue"), "bus": ("pet",)}
    several = [replace(pictogram(name, keywords=known[name]), group=group[name]) for name in group]
    augmentation = Augmentation(Augment(surplus=0.5), several, square((9, 9, 9)).expand(4, -1, -1, -1))
    drawn = [augmentation.draw(0, random.Random(seed)).surplus.format("dog") for seed in range(400)]
    assert sum(map(bool, drawn)) / 400 == pytest.approx(0.5, abs=0.08)
    assert {"dog in the rain", "weather dog", "dog with a bus", ""} <= set(drawn)
    words = {word for text in drawn for word in text.split()}
    assert words == {"dog", "in", "the", "a", "with", "over", "rain", "weather", "bus"}


def test_without_surplus_the_other_draws_stay() -> None:
    given = [pictogram("taxi", keywords=("cab",))], square((9, 200, 9))[None]
    with_it, without = (Augmentation(replace(ALL, surplus=share), *given) for share in (1.0, 0.0))
    for seed in range(20):
        found = with_it.draw(0, random.Random(seed))
        assert replace(found, surplus="") == without.draw(0, random.Random(seed))


# --- batches ---


def test_without_augmentation_batches_are_what_they_were() -> None:
    plain, neutral = batches(None)(3), batches(Augment())(3)
    assert plain.captions == neutral.captions
    assert (plain.images - neutral.images).abs().mean() < 0.02  # rendered at twice the side


def test_augmented_batches_are_a_function_of_the_step_and_shared_by_processes() -> None:
    alone = batches(ALL)(5)
    assert torch.equal(alone.images, batches(ALL)(5).images)
    shares = [batches(ALL, rank, 3)(5) for rank in range(3)]
    assert torch.allclose(torch.cat([share.images for share in shares]), alone.images, atol=1e-6)
    assert [text for share in shares for text in share.captions] == alone.captions
    assert alone.images.min() >= 0 and alone.images.max() <= 1 + 1e-6
    assert not torch.equal(alone.images, batches(ALL)(7).images)


def test_captions_name_the_colour_and_the_synonym() -> None:
    everything = replace(ALL, recolour=1.0, synonym=1.0)
    named = [replace(each, concept="gadget") for each in pictograms()]  # by no colour
    data = PictogramBatches(named, SIZE, 6, 0, Process(), augment=everything)
    captions = [text for step in range(4) for text in data(step).captions]
    assert all(re.search(r"\b(thing|stuff)\b", text) for text in captions)
    before_it = [re.search(r"(\w+) (?:thing|stuff)\b", text) for text in captions]
    assert any(found is not None and found[1] in COLOURS for found in before_it)


def test_captions_have_the_surplus_words_around_the_name() -> None:
    several = [
        replace(each, concept="gadget", keywords=(), group=group)
        for each, group in zip(pictograms(), ("objects", "food"), strict=False)
    ]
    several[1] = replace(several[1], keywords=("rain",))
    data = PictogramBatches(several[:2], SIZE, 8, 0, Process(), augment=Augment(surplus=1.0))
    captions = " ".join(text for step in range(8) for text in data(step).captions)
    assert "rain gadget" in captions and "gadget in the rain" in captions


def test_crops_of_upsamplers_refuse_it(tmp_path) -> None:
    config = DataConfig(shards=str(write_tiny_shards(tmp_path)), augment=Augment(turn=5))
    with pytest.raises(ValueError, match=r"data\.augment is set"):
        open_crops(config, 64, 32, 0, 1, 4, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smallest": 0.1}, "data.augment.smallest is 0.1, expected 0.3 to 1"),
        ({"turn": 90}, "data.augment.turn is 90, expected 0 to 45"),
        ({"mirror": 1.5}, "data.augment.mirror is 1.5, expected 0 to 1"),
    ],
)
def test_settings_outside_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**settings)
