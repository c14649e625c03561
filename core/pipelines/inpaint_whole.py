"""A part of a picture of any size painted anew, by way of what surrounds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.samplers import StepCallback
from ..embeddings.space import Embedding, TextFeatures
from ..stages import DecoderStage, UpsamplerStage, require_stage
from .canvas import Size, picture_size
from .composite import Box, bounds, composite, require_mask, resize, shrink_mask
from .conditions import Conditions
from .inpaint import InpaintOptions, inpaint, inpaint_steps
from .memory import decode_memory
from .options import is_guided, option
from .rows import common_batch, require_pictures, to_batch
from .upsample import UpsampleOptions, inpaints, upsample, upsample_memory

OnStage = Callable[
    [DecoderStage | UpsamplerStage, int, str, int], AbstractContextManager[StepCallback | None]
]
"""(stage, bytes it takes beside its weights, title, steps) → a context in which it runs, and the callback."""


@dataclass(frozen=True)
class InpaintWholeOptions(InpaintOptions):
    """How a part of a picture of any size is painted anew.

    Attributes:
        feather: in pixels of the picture.
        margin: of the surroundings that are seen, as a share of the longer side of what is masked.
    """

    feather: int = option(4, 0, 256, help="Soft edge inside the mask, in pixels of the picture.")
    margin: float = option(
        0.5,
        0.0,
        4.0,
        0.05,
        help="How much around the masked part is seen, on each side, as a share of its longer side. More "
        "fits better, less gives finer detail and more of the thing itself.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin is {self.margin}; expected 0 (the masked part alone) or more")


def _no_stage(*_: object) -> AbstractContextManager[None]:
    return nullcontext()


@torch.no_grad()
def inpaint_whole(
    decoder: DecoderStage,
    image: Tensor,
    mask: Tensor,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    seed: int,
    batch_size: int = 1,
    options: InpaintWholeOptions = InpaintWholeOptions(),
    upsamplers: Sequence[UpsamplerStage] = (),
    upsampler_text: TextFeatures | None = None,
    negative_embedding: Embedding | None = None,
    negative_text: TextFeatures | None = None,
    hint: Tensor | None = None,
    on_stage: OnStage = _no_stage,
) -> Tensor:
    """Paint what a mask covers anew, in pictures of any size.

    A rectangle around the mask, see :func:`surroundings`, is cut out, painted by :func:`inpaint` at the
    decoder's size, made larger by the upsamplers, brought back to its own size and put in by
    :func:`composite`. Picture i is the one that seed + i gives alone.

    Args:
        image: [1 or B, 3, H, W] in 0..1.
        mask: [1 or B, 1, H, W] in 0..1, 1 = repaint. Pictures whose mask is empty come back as they are, and
            all of them do unless ``options.changes``.
        embedding: [1 or B, D], what the part and its surroundings are to show.
        upsamplers: one after the other; those that were trained to inpaint see picture and mask.
        upsampler_text: captions for upsamplers that read them.
        hint: [1 or B, 3, h, w] in 0..1, of the whole picture; the decoder gets what lies in the rectangle.
        on_stage: each stage runs inside the context that this gives, with its callback.

    Returns:
        [B, 3, H, W] float32 in 0..1 on the picture's device; where the mask is 0 the picture, to the bit.

    Raises:
        ValueError: as :func:`inpaint` and ``upsample``, but for empty masks.
    """
    require_stage(DecoderStage, decoder=decoder)
    require_pictures(image)
    require_mask(mask, image)
    conditions = Conditions(embedding, text, negative_embedding, negative_text, hint)
    batch = common_batch(image=len(image), mask=len(mask), **conditions.sizes(), batch_size=batch_size)
    image, mask = to_batch(image.float().clamp(0, 1), batch), to_batch(mask.to(image), batch)
    if not bool((mask > 0).any()) or not options.changes:
        return image.contiguous()
    size = picture_size(decoder, options.width, options.height)
    boxes = [surroundings(row, size, options.margin) for row in mask]
    memory = decode_memory(decoder, 2.0 if is_guided(options) else 1.0, batch, size=size)
    with on_stage(decoder, memory, "Inpaint", inpaint_steps(decoder, options)) as callback:
        painted = inpaint(
            decoder,
            *_cut_out(image, mask, boxes, size),
            **vars(replace(conditions, hint=_cut_hint(hint, image, boxes, size))),
            seed=seed,
            batch_size=batch,
            options=replace(options, feather=0),
            callback=callback,
        ).to(image)
    for upsampler in upsamplers:
        painted = _upsampled(upsampler, painted, image, mask, boxes, upsampler_text, seed, on_stage)
    edited = torch.cat([_put_back(*row) for row in zip(image, painted, boxes, strict=True)])
    return composite(image, edited, mask, options.feather)


def surroundings(mask: Tensor, shape: Size, margin: float) -> Box:
    """A rectangle in the proportions of ``shape`` around what a mask covers.

    The margin is less where the picture ends: only if the mask itself, in these proportions, does not fit
    into the picture, the rectangle reaches out of it. It is moved into the picture rather than cut.

    Args:
        mask: [1, H, W]; all of the picture counts as covered where it is empty.
        margin: beside it on each side, as a share of its longer side.
    """
    height, width = mask.shape[-2:]
    left, top, right, bottom = bounds(mask[0] > 0) or (0, 0, width, height)
    tall, wide, stretch = bottom - top, right - left, shape[1] / shape[0]
    around = 2 * margin * max(tall, wide)
    least = max(tall, wide / stretch)
    wanted = max(tall + around, (wide + around) / stretch)
    side = math.ceil(max(least, min(wanted, height, width / stretch)))
    across = max(wide, round(side * stretch))
    y, x = _within(top + bottom - side, side, height), _within(left + right - across, across, width)
    return x, y, x + across, y + side


def _within(doubled: int, length: int, whole: int) -> int:
    """A start at half of ``doubled``, moved so that as much as can be of the length lies in 0..whole."""
    spare = whole - length
    return min(max(doubled // 2, min(0, spare)), max(0, spare))


def _cut_out(image: Tensor, mask: Tensor, boxes: Sequence[Box], size: Size) -> tuple[Tensor, Tensor]:
    """What lies in the box of each row, as pictures and masks of a size. Outside of the picture its edge is
    repeated, and repainted."""
    pictures, masks = [], []
    for picture, covered, box in zip(image, mask, boxes, strict=True):
        part, outside = _part(picture, box)
        pictures.append(resize(part, size))
        masks.append(shrink_mask(torch.maximum(_part(covered, box)[0], outside.to(mask)), size))
    return torch.cat(pictures), torch.cat(masks)


def _cut_hint(hint: Tensor | None, image: Tensor, boxes: Sequence[Box], size: Size) -> Tensor | None:
    """What lies in the boxes of a hint of the whole pictures, [B, 3, *size]."""
    if hint is None:
        return None
    require_pictures(hint, "hint")
    hint = to_batch(resize(hint.to(image).clamp(0, 1), (image.shape[-2], image.shape[-1])), len(image))
    return torch.cat([resize(_part(row, box)[0], size) for row, box in zip(hint, boxes, strict=True)])


def _part(picture: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """[1, C, h, w] of a picture [C, H, W], whose edge is repeated outside; and [h, w], what lies outside."""
    left, top, right, bottom = box
    height, width = picture.shape[-2:]
    y = torch.arange(top, bottom, device=picture.device)
    x = torch.arange(left, right, device=picture.device)
    outside = ((y < 0) | (y >= height))[:, None] | (x < 0) | (x >= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    return picture[None, :, y][..., x], outside


def _upsampled(
    upsampler: UpsamplerStage,
    painted: Tensor,
    image: Tensor,
    mask: Tensor,
    boxes: Sequence[Box],
    text: TextFeatures | None,
    seed: int,
    on_stage: OnStage,
) -> Tensor:
    options, (height, width) = UpsampleOptions(), painted.shape[-2:]
    known: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
    if inpaints(upsampler):
        scale = upsampler.network.config.image_size // upsampler.low_size
        known = _cut_out(image, mask, boxes, (height * scale, width * scale))
    memory = upsample_memory(upsampler, len(painted), height, width)
    steps = options.steps if upsampler.timesteps is None else len(upsampler.timesteps)
    with on_stage(upsampler, memory, "Upsample", steps) as callback:
        return upsample(
            upsampler,
            painted,
            text,
            seed=seed,
            options=options,
            known_image=known[0],
            mask=known[1],
            callback=callback,
        ).to(image)


def _put_back(picture: Tensor, painted: Tensor, box: Box) -> Tensor:
    """[1, 3, H, W]: a picture [3, H, W] with what was painted in a box of it, cut off where that ends."""
    left, top, right, bottom = box
    height, width = picture.shape[-2:]
    part = resize(painted[None], (bottom - top, right - left))
    edited = picture[None].clone()
    inside = part[..., max(0, -top) : height - top, max(0, -left) : width - left]
    edited[..., max(0, top) : bottom, max(0, left) : right] = inside
    return edited
