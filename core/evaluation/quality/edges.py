"""Patterns of a network's patches, and how clean edges are: measured in the picture's gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 0.05
"""Steps between neighbours, in 0..1, up to which a part of a picture counts as flat."""
REACH = 8
CONTRAST = 0.2
_MOST_EDGES = 4000  # of a picture: more tell nothing new
_STEEP = 0.01


@dataclass(frozen=True)
class GridEnergy:
    """Root mean square of the steps between neighbouring pixels, in levels of 1/255.

    Attributes:
        at: of steps from one patch to the next.
        between: of the other ones, within a patch.
    """

    at: float
    between: float

    @property
    def ratio(self) -> float | None:
        """Energy at multiples of the patch over that elsewhere: 1 without a pattern; None of 0."""
        return (self.at / self.between) ** 2 if self.between else None

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "between": self.between, "ratio": self.ratio}


def grid_energy(images: Tensor, patch: int, limit: float | None = None) -> GridEnergy:
    """Energy of the gradient at the borders of patches, and elsewhere.

    Args:
        images: [B, 3, H, W] in 0..1.
        patch: side of a patch in pixels, at least 2; the first begins in the upper left corner.
        limit: only steps of at most this much in every channel, so that the edges of what is shown do not
            count; None for all.
    """
    if patch < 2:
        raise ValueError(f"patch is {patch}, expected at least 2: within a pixel there is no other step")
    energy, count = [0.0, 0.0], [0, 0]
    for axis in (-1, -2):
        steps = images.double().diff(dim=axis).movedim(axis, -1)  # [B, 3, other axis, side − 1]
        counted = torch.ones_like(steps[:, 0], dtype=torch.bool)
        if limit is not None:
            counted = steps.abs().amax(dim=1) <= limit
        squares = steps.square().mean(dim=1) * counted  # [B, other axis, side − 1]
        border = (torch.arange(1, steps.shape[-1] + 1, device=images.device) % patch) == 0
        for kind, chosen in enumerate((border, ~border)):
            energy[kind] += squares[..., chosen].sum().item()
            count[kind] += int(counted[..., chosen].sum())
    at, between = (255 * math.sqrt(e / c) if c else 0.0 for e, c in zip(energy, count, strict=True))
    return GridEnergy(at, between)


@dataclass(frozen=True)
class EdgeProfile:
    """The mean edge of pictures, looked at along its normal.

    Attributes:
        edges: how many were found.
        profile: the gradient at −reach … reach pixels from the edge, as shares of the edge's contrast.
        width: of a rectangle with the height of the profile's middle and the area of an edge, in pixels: for
            a Gaussian blur of σ, σ·√(2π).
        overshoot: how far brightness leaves the range of its two ends, as a share of the contrast.
    """

    edges: int
    profile: tuple[float, ...]
    width: float
    overshoot: float

    def to_json(self) -> dict[str, Any]:
        return {
            "edges": self.edges,
            "width": self.width,
            "overshoot": self.overshoot,
            "profile": list(self.profile),
        }


def edge_profile(
    images: Tensor, located: Tensor | None = None, reach: int = REACH, contrast: float = CONTRAST
) -> EdgeProfile | None:
    """The gradient across edges: how sharp they are, and whether there are halos beside them.

    Edges are where brightness changes fastest along its own gradient, and differs by ``contrast`` from
    ``reach`` pixels before to ``reach`` behind. Other edges within that reach count in: compare with the same
    measure of true pictures.

    Args:
        images: [B, 3, H, W] in 0..1.
        located: pictures of the same shape in which edges are looked for, such as the true ones that
            ``images`` should show; None for ``images``.

    Returns:
        None where no edge was found.
    """
    reference = (images if located is None else located).double().mean(dim=1)  # [B, H, W]
    grey = images.double().mean(dim=1)
    lines = []
    for shown, found_in in zip(grey, reference, strict=True):
        points, normals = _edges(found_in, reach)
        if not len(points):
            continue
        before = _along(found_in, points, normals, reach)  # [N, 2·reach + 2]
        strong = (before[:, -1] - before[:, 0]) >= contrast
        points, normals = points[strong], normals[strong]
        stride = max(1, -(-len(points) // _MOST_EDGES))
        lines.append(_along(shown, points[::stride], normals[::stride], reach))
    found = torch.cat(lines) if lines else torch.zeros(0, 2)
    rise = found[:, -1] - found[:, 0]
    # Where the edge of the true picture is missing in the other one there is nothing to be normalised.
    found, rise = found[rise > contrast / 2], rise[rise > contrast / 2]
    if not len(found):
        return None
    profile = (found.diff(dim=1) / rise[:, None]).mean(dim=0)  # [2·reach + 1]
    beyond = (found.amax(dim=1) - found[:, -1]) + (found[:, 0] - found.amin(dim=1))
    return EdgeProfile(
        edges=len(found),
        profile=tuple(profile.tolist()),
        width=1 / profile[reach].clamp(min=1e-6).item(),
        overshoot=(beyond / rise).mean().item(),
    )


def _edges(grey: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """[H, W] → places of edges [N, 2] as (x, y) and their unit normals [N, 2], towards the brighter side."""
    gy, gx = torch.gradient(grey)
    slope = torch.hypot(gx, gy)
    margin = reach + 1
    inner = torch.zeros_like(slope, dtype=torch.bool)
    inner[margin:-margin, margin:-margin] = True
    y, x = ((slope > _STEEP) & inner).nonzero(as_tuple=True)
    points = torch.stack((x, y), dim=1).double()
    normals = torch.stack((gx[y, x], gy[y, x]), dim=1) / slope[y, x, None]
    # Steepest along the normal (Canny 1986); of two alike the one on the brighter side.
    before = _sampled(slope, points - normals)
    behind = _sampled(slope, points + normals)
    own = slope[y, x]
    steepest = (own >= before - 1e-9) & (own > behind + 1e-9)
    # Between pixels the top of the parabola through the three says where.
    curvature = (before - 2 * own + behind).clamp(max=-1e-9)
    within = (0.5 * (before - behind) / curvature).clamp(-0.5, 0.5)
    points = points + within[:, None] * normals
    return points[steepest], normals[steepest]


def _along(grey: Tensor, points: Tensor, normals: Tensor, reach: int) -> Tensor:
    """[N, 2·reach + 2]: brightness at −reach − ½ … reach + ½ pixels along the normals."""
    offsets = torch.arange(-reach, reach + 2, dtype=torch.double, device=grey.device) - 0.5
    return _sampled(grey, points[:, None] + offsets[:, None] * normals[:, None])


def _sampled(grey: Tensor, places: Tensor) -> Tensor:
    """[H, W] at places [..., 2] in pixels, (x, y), whole numbers being pixels' middles → [...]; bilinear."""
    height, width = grey.shape
    size = places.new_tensor([width - 1, height - 1])
    grid = (2 * places / size - 1).reshape(1, 1, -1, 2)
    found = F.grid_sample(grey[None, None], grid, padding_mode="border", align_corners=True)
    return found.reshape(places.shape[:-1])
