"""Pictures with alpha, [B, 4, H, W] in 0..1, put together: what cannot be seen has no colour to mix.

Colours are weighted by alpha before they are mixed and divided by it afterwards (Porter and Duff, 1984), so
that no edge takes on what a picture hides where it is transparent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .composite import Box, composite, paste, soften


def composite_seen(original: Tensor, edited: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """``composite`` of pictures with alpha: the original where the mask is 0, to the bit.

    Args:
        original, edited: [1 or B, 4, ...].
        mask, feather: see ``composite``.

    Returns:
        [B, 4, H, W] float32 in 0..1.

    Raises:
        ValueError: as ``composite``.
    """
    (colours, alpha), (other, other_alpha) = _parts(original), _parts(edited)
    weighted = composite(colours * alpha, other * other_alpha, mask, feather)
    made = composite(_grey(alpha), _grey(other_alpha), mask, feather)[:, :1]
    return _divided(weighted, made, colours, mask == 0)


def with_opaque_edit(original: Tensor, result: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """The alpha of an original given to what ``composite`` made of its colours and an opaque edit.

    Args:
        original: [1 or B, 4, H, W].
        result: [B, 3, H, W], of the same mask [1 or B, 1, H, W] and feather.

    Returns:
        [B, 4, H, W] float32 in 0..1, opaque where the edit shows.
    """
    colours, alpha = _parts(original)
    kept = 1 - soften(mask.to(result).clamp(0, 1), feather)
    weighted = result - colours * kept * (1 - alpha)
    return _divided(weighted, 1 - kept * (1 - alpha), result, kept == 1)


def paste_seen(image: Tensor, sticker: Tensor, box: Box) -> Tensor:
    """``paste`` of pictures with alpha: the picture shows through what is transparent of the sticker.

    Args:
        image, sticker: [1 or B, 4, ...].
        box: see ``paste``.

    Returns:
        [B, 4, H, W] float32 in 0..1; where nothing of the sticker is seen the picture, to the bit.

    Raises:
        ValueError: as ``paste``.
    """
    (colours, alpha), (other, other_alpha) = _parts(image), _parts(sticker)
    nothing = torch.zeros_like(colours)
    over = paste(nothing, other * other_alpha, box)
    above = paste(nothing, _grey(other_alpha), box)[:, :1]
    below = alpha * (1 - above)
    return _divided(over + colours * below, above + below, colours, above == 0)


def on_colour(image: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """[B, 4, H, W] before a colour, in 0..255 → [B, 3, H, W]."""
    paper = torch.tensor(colour, dtype=torch.float32, device=image.device).reshape(1, 3, 1, 1) / 255
    return over(image, paper)


def over(image: Tensor, behind: Tensor) -> Tensor:
    """[B, 4, H, W] before an opaque picture [1 or B, 3, …] → [B, 3, H, W]."""
    colours, alpha = _parts(image)
    return torch.lerp(behind.to(colours), colours, alpha)


def _parts(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[:, :3].float(), image[:, 3:].float()


def _grey(alpha: Tensor) -> Tensor:
    return alpha.expand(-1, 3, -1, -1)


def _divided(weighted: Tensor, alpha: Tensor, colours: Tensor, kept: Tensor) -> Tensor:
    """[B, 4, H, W]: weighted colours over alpha; ``colours`` where those are kept, or nothing is seen."""
    found = (weighted / torch.where(alpha > 0, alpha, 1.0)).clamp(0, 1)
    return torch.cat([torch.where(kept | (alpha <= 0), colours, found), alpha.expand_as(found[:, :1])], dim=1)
