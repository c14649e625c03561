"""Background binding: is the border of a picture in the colour that its caption names?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Statistic = Literal["mean", "median"]

BORDER = 1 / 32
"""Width of the border as a fraction of the picture's: 2 of 64 pixels."""

# IEC 61966-2-1: linear sRGB → CIE XYZ, and its white point D65.
_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE = (0.95047, 1.0, 1.08883)


def border_colour(images: Tensor, statistic: Statistic = "mean", border: float = BORDER) -> Tensor:
    """Colour of the pixels along the four edges.

    Args:
        images: [B, 3, H, W] in 0..1.
        statistic: the mean mixes in whatever of the pictogram reaches the edge; the median, component by
            component, is the background as long as it fills more than half of the border.
        border: width of the border as a fraction of the shorter side; at least one pixel.

    Returns:
        [B, 3] sRGB in 0..1.
    """
    height, width = images.shape[-2:]
    thick = max(1, round(border * min(height, width)))
    outside = torch.ones(height, width, dtype=torch.bool, device=images.device)
    outside[thick : height - thick, thick : width - thick] = False
    pixels = images[:, :, outside]  # [B, 3, pixels]
    return pixels.mean(dim=-1) if statistic == "mean" else pixels.median(dim=-1).values


def srgb_to_lab(colours: Tensor) -> Tensor:
    """[..., 3] sRGB in 0..1 → [..., 3] CIELAB (D65): L in 0..100, a and b about −130..130; float64."""
    rgb = colours.double()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ linear.new_tensor(_TO_XYZ).T / linear.new_tensor(_WHITE)
    # CIE 15, equations 8.3 to 8.11
    limit = 6 / 29
    curved = torch.where(xyz > limit**3, xyz.clamp(min=0) ** (1 / 3), xyz / (3 * limit**2) + 4 / 29)
    x, y, z = curved.unbind(dim=-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def nearest_names(colours: Tensor, palette: Mapping[str, Sequence[int]]) -> list[str]:
    """Name of the palette's colour that is nearest to each colour in CIELAB (CIE76, Euclidean).

    Args:
        colours: [B, 3] sRGB in 0..1.
        palette: sRGB 0..255 by name.
    """
    names = list(palette)
    known = srgb_to_lab(torch.tensor([list(palette[name]) for name in names], device=colours.device) / 255)
    distances = (srgb_to_lab(colours)[:, None] - known).norm(dim=-1)  # [B, names]
    return [names[index] for index in distances.argmin(dim=-1).tolist()]


def mean_hues(images: Tensor) -> Tensor:
    """The mean hue of each picture, of all pixels by their chroma: those without colour do not count.

    Args:
        images: [B, 3, H, W] sRGB in 0..1.

    Returns:
        [B, 2]: the mean of the pixels in the chroma plane; its angle is the hue (red 0°, green 120°), its
        length the strength, 0 for grey pictures.
    """
    red, green, blue = images.double().flatten(2).mean(dim=-1).unbind(dim=1)  # the plane is linear in RGB
    return torch.stack((red - (green + blue) / 2, 3**0.5 / 2 * (green - blue)), dim=1)


def nearest_hues(hues: Tensor, palette: Mapping[str, Sequence[int]], weakest: float = 0.02) -> list[str]:
    """Name of the palette's colour whose hue is nearest; empty for hues weaker than ``weakest``.

    Args:
        hues: [B, 2], of :func:`mean_hues`.
        palette: sRGB 0..255 by name.
    """
    names = list(palette)
    colours = torch.tensor([list(palette[name]) for name in names])[:, :, None, None] / 255
    known = torch.nn.functional.normalize(mean_hues(colours), dim=1)  # [names, 2]
    nearest = (hues.cpu() @ known.T).argmax(dim=1).tolist()
    strong = (hues.norm(dim=1) >= weakest).tolist()
    return [names[index] if there else "" for index, there in zip(nearest, strong, strict=True)]


def background_hits(
    images: Tensor,
    named: Sequence[str],
    palette: Mapping[str, Sequence[int]],
    statistic: Statistic = "mean",
    border: float = BORDER,
) -> Tensor:
    """[B] bool: of all the palette, the border's colour is nearest to the one that the caption names.

    Args:
        images: [B, 3, H, W] in 0..1.
        named: the right name of each picture, one of the palette's.
        palette: sRGB 0..255 by name.
        statistic, border: see :func:`border_colour`.
    """
    found = nearest_names(border_colour(images, statistic, border), palette)
    return torch.tensor([name == right for name, right in zip(found, named, strict=True)])
