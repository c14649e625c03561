"""Masks, and an edited part put into the picture that it belongs to."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require_kind, require_whole
from .rows import MASKS, common_batch, require_finite, require_pictures, to_batch

Shape = Literal["rectangle", "ellipse"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def composite(original: Tensor, edited: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """The original where the mask is 0, to the bit, and the edited picture where it is 1.

    Args:
        original: [1 or B, 3, H, W] in 0..1.
        edited: [1 or B, 3, h, w] in 0..1; brought to the original's size.
        mask: [1 or B, 1, H, W] in 0..1; between 0 and 1 the pictures are mixed.
        feather: pixels over which the edited part fades out towards its edge, see :func:`soften`.

    Returns:
        [B, 3, H, W] float32 in 0..1.

    Raises:
        ValueError: not pictures, a mask of another size, or batch sizes that do not match.
    """
    require_pictures(original, "original")
    require_pictures(edited, "edited")
    require_mask(mask, original)
    batch = common_batch(original=len(original), edited=len(edited), mask=len(mask))
    original = to_batch(original.float(), batch)
    height, width = original.shape[-2:]
    edited = resize(edited.to(original), (height, width))
    alpha = soften(mask.to(original).clamp(0, 1), feather)  # [1 or B, 1, H, W]
    mixed = torch.lerp(original, to_batch(edited, batch), alpha.expand(batch, *original.shape[1:]))
    return torch.where(alpha == 0, original, mixed)


Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are just outside."""


def box_of(size: tuple[int, int], centre: tuple[float, float], extent: tuple[float, float]) -> Box:
    """A rectangle given by shares of a picture, at least a pixel wide and high; it may reach out of it.

    Args:
        size: H and W of the picture.
        centre: x and y, as shares of the width and height.
        extent: width and height of the rectangle, likewise.
    """
    (height, width), (x, y) = size, centre
    across, down = (max(1, round(extent[0] * width)), max(1, round(extent[1] * height)))
    left, top = round(x * width - across / 2), round(y * height - down / 2)
    return left, top, left + across, top + down


def paste(image: Tensor, sticker: Tensor, box: Box) -> Tensor:
    """A picture stuck on another one: in the middle of a box, as large as it fits with its proportions.

    Args:
        image: [1 or B, 3, H, W] in 0..1.
        sticker: [1 or B, 3, h, w] in 0..1.
        box: in pixels of the picture; what reaches out of that is cut off.

    Returns:
        [B, 3, H, W] float32 in 0..1; around the sticker the picture, to the bit.

    Raises:
        ValueError: not pictures, or batch sizes that do not match.
    """
    require_pictures(image)
    require_pictures(sticker, "sticker")
    batch = common_batch(image=len(image), sticker=len(sticker))
    pasted = to_batch(image.float(), batch).clone()
    left, top, right, bottom = box
    height, width = sticker.shape[-2:]
    scale = min((right - left) / width, (bottom - top) / height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    part = resize(sticker.to(pasted), (height, width))
    left, top = (left + right - width) // 2, (top + bottom - height) // 2
    # What lies within the picture, nothing where the box is beside it.
    y0, y1 = (min(max(edge, 0), pasted.shape[-2]) for edge in (top, top + height))
    x0, x1 = (min(max(edge, 0), pasted.shape[-1]) for edge in (left, left + width))
    pasted[..., y0:y1, x0:x1] = part[..., y0 - top : y1 - top, x0 - left : x1 - left]
    return pasted


def soften(mask: Tensor, feather: int) -> Tensor:
    """[B, 1, H, W]: rising from the mask's edge to its full value within ``feather`` pixels, inside of it.

    What is 0 stays 0. The value is the mean of the mask and its first ``feather`` erosions: d / (feather + 1)
    in the d-th pixel from the edge. The borders of the picture are no edge.

    Raises:
        ValueError: a negative feather, or no whole number.
    """
    require_whole(feather=feather)
    if feather < 0:
        raise ValueError(f"feather is {feather}; expected 0 pixels or more")
    box = bounds((mask > 0).flatten(0, 1).any(dim=0))
    if feather == 0 or box is None:
        return mask
    (left, top, right, bottom), soft = box, torch.zeros_like(mask)
    # A pixel around what is masked is its edge; all further away stays 0.
    places = (..., slice(max(0, top - 1), bottom + 1), slice(max(0, left - 1), right + 1))
    total, eroded = mask[places].clone(), mask[places]
    for _ in range(feather):
        eroded = _eroded(eroded)
        if not bool(eroded.any()):
            break
        total += eroded
    soft[places] = total / (feather + 1)
    return soft


def bounds(covered: Tensor) -> Box | None:
    """The smallest rectangle around what is true of [H, W]; None where nothing is."""
    rows, columns = covered.any(dim=1).nonzero().flatten(), covered.any(dim=0).nonzero().flatten()
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _eroded(mask: Tensor) -> Tensor:
    """[B, 1, H, W]: the least of each pixel and its neighbours. By whole rows and columns, which takes a
    fraction of the time of a pooling layer."""
    for dim in (-2, -1):
        length = mask.shape[dim] - 1
        least = mask.clone()
        for start, other in ((0, 1), (1, 0)):
            part = least.narrow(dim, start, length)
            torch.minimum(part, mask.narrow(dim, other, length), out=part)
        mask = least
    return mask


def shrink_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 1, H, W] → [B, 1, *size]: a pixel gets the largest value of the mask in its area."""
    return mask if tuple(mask.shape[-2:]) == size else F.adaptive_max_pool2d(mask, size)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 3, h, w] → [B, 3, *size], bicubic with antialias, in 0..1; untouched where the size fits."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def require_mask(mask: Tensor, images: Tensor) -> None:
    """Raise a ValueError unless this is a finite mask [B, 1, H, W] of the size of the pictures."""
    require_kind(Tensor, MASKS, mask=mask)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"mask: found shape {tuple(mask.shape)}, expected [batch, 1, {images.shape[-2]}, "
            f"{images.shape[-1]}], the size of the pictures"
        )
    require_finite(mask=mask)


def region_mask(
    size: tuple[int, int], shape: Shape, centre: tuple[float, float], extent: tuple[float, float]
) -> Tensor:
    """A mask [1, 1, H, W] float32 that is 1 in a rectangle or an ellipse.

    Args:
        size: H and W.
        centre: x and y, as shares of the width and height.
        extent: width and height of the shape, likewise. A pixel belongs to it if its middle does.

    Raises:
        ValueError: an unknown shape, or one that covers no pixel.
    """
    height, width = size
    x = ((torch.arange(width) + 0.5) / width - centre[0]).abs() * 2  # [W]
    y = ((torch.arange(height) + 0.5) / height - centre[1]).abs()[:, None] * 2  # [H, 1]
    inside = (x <= extent[0]) & (y <= extent[1])
    if shape == "ellipse":
        inside &= (x * extent[1]) ** 2 + (y * extent[0]) ** 2 <= (extent[0] * extent[1]) ** 2
    elif shape != "rectangle":
        raise ValueError(f"shape: found {shape!r}, expected one of {', '.join(SHAPES)}")
    if not bool(inside.any()):
        raise ValueError(
            f"x, y, width, height: the {shape} of {extent[0]:g} × {extent[1]:g} at {centre[0]:g}, "
            f"{centre[1]:g} covers no pixel of a picture of {width}×{height}; make it larger, or move it "
            f"into the picture"
        )
    return inside.float()[None, None]
