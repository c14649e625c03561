"""Pictures with alpha put together: nothing hidden is seen, nothing kept is changed."""

from __future__ import annotations

import pytest
import torch
from unclip.core.pipelines.composite import composite, paste
from unclip.core.pipelines.transparency import composite_seen, on_colour, paste_seen, with_opaque_edit

BOX = (2, 1, 7, 5)


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(2, 4, 6, 8, generator=draw), torch.rand(1, 4, 6, 8, generator=draw)


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, 6, 8)
    mask[..., 1:5, 2:7] = 1
    return mask


def premultiplied(image: torch.Tensor) -> torch.Tensor:
    return image[:, :3] * image[:, 3:]


@pytest.mark.parametrize("feather", [0, 2])
def test_what_is_seen_of_a_composite_is_mixed_and_the_rest_is_kept(pictures, mask, feather) -> None:
    original, edited = pictures
    made = composite_seen(original, edited, mask, feather)
    outside = (mask == 0).expand_as(made)
    assert made.shape == original.shape and torch.equal(made[outside], original[outside])
    expected = composite(premultiplied(original), premultiplied(edited), mask, feather)
    assert torch.allclose(premultiplied(made), expected, atol=1e-6)


def test_an_opaque_edit_is_a_composite_with_an_opaque_picture(pictures, mask) -> None:
    original, edited = pictures
    original[:, 3, :3] = 0  # hides its colours
    edited[:, 3] = 1
    result = composite(original[:, :3], edited[:, :3], mask, 2)
    made = with_opaque_edit(original, result, mask, 2)
    assert torch.allclose(made, composite_seen(original, edited, mask, 2), atol=1e-6)
    assert made[0, 3, 0, 0] == 0 and made[0, 3, 1, 2] == pytest.approx(1 / 3) and made[0, 3, 5, 0] < 1


def test_what_is_transparent_of_a_sticker_shows_what_is_behind(pictures) -> None:
    image, sticker = pictures
    sticker = sticker[..., :4, :5].clone()
    sticker[:, 3, :, :2], sticker[:, 3, :, 2:] = 0, 1
    made, covered = paste_seen(image, sticker, BOX), paste(image[:, :3], sticker[:, :3], BOX)
    assert torch.equal(made[..., :4], image[..., :4]), "the left of it, and what it does not cover"
    assert torch.allclose(made[:, :3, 1:5, 4:7], covered[..., 1:5, 4:7]) and (made[:, 3, 1:5, 4:7] == 1).all()
    half = torch.cat([sticker[:, :3], torch.full_like(sticker[:, 3:], 0.5)], dim=1)
    mean = (image[:, :3] + covered) / 2
    image[:, 3] = 1
    assert torch.allclose(paste_seen(image, half, BOX)[:, :3, 1:5, 2:7], mean[..., 1:5, 2:7], atol=1e-6)


def test_a_colour_is_seen_through_what_is_transparent(pictures) -> None:
    image, _ = pictures
    image[:, 3, 0], image[:, 3, 1] = 0, 1
    seen = on_colour(image, (255, 0, 51))
    assert torch.allclose(seen[:, :, 0], torch.tensor([1.0, 0.0, 0.2])[None, :, None].expand(2, 3, 8))
    assert torch.equal(seen[:, :, 1], image[:, :3, 1])
