"""What a decoder paints on: the size of its pictures, and pictures as its network knows them and back.

A decoder without autoencoder paints pictures in −1..1; one with an autoencoder paints the autoencoder's
latents, and everything that takes a decoder still takes and gives pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import require_whole
from ..diffusion.samplers import SamplerStep, StepCallback
from ..memory import free_memory
from ..networks.clip import ImageFit, fit_images
from ..networks.movq import MoVQ
from ..networks.movq_tiles import decode_in_tiles, encode_in_tiles
from ..stages import AutoencoderStage, DecoderStage
from .composite import resize
from .rows import device_and_dtype

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width."""

LARGEST_STRETCH = 16
"""Times its own size that a decoder paints at most: beyond, it only computes for hours."""

MIN_TILE = 16
"""Places of the latent of the smallest tile: smaller ones are mostly margin."""


def picture_size(
    decoder: DecoderStage,
    width: int = 0,
    height: int = 0,
    like: Tensor | None = None,
    *,
    quiet: bool = False,
) -> Size:
    """Height and width of the pictures to paint.

    Args:
        width, height: rounded up to what the decoder can paint, with a word about it. 0 is the decoder's own
            size; if both are, a decoder with an autoencoder keeps the proportions of ``like``.
        like: pictures [B, 3, H, W].
        quiet: without the word about it.

    Raises:
        ValueError: no whole numbers, negative, another size than the only one that a decoder has, or more
            than LARGEST_STRETCH times its own.
    """
    require_whole(width=width, height=height)
    if width < 0 or height < 0:
        raise ValueError(f"width is {width} and height {height}; expected pixels, or 0 for the decoder's own")
    own, multiple = decoder.picture_size, _multiple(decoder)
    if not width and not height:
        if like is None or decoder.autoencoder is None:
            return own, own
        stretch = own / (like.shape[-2] * like.shape[-1]) ** 0.5
        sides = [max(1, round(side * stretch / multiple)) * multiple for side in like.shape[-2:]]
        return sides[0], sides[1]
    width, height = width or own, height or own
    rounded = paintable(decoder, width, height)
    if rounded != (height, width) and not quiet:
        logger.warning(
            "%d×%d is rounded up to %d×%d: this decoder paints multiples of %d pixels",
            width,
            height,
            *reversed(rounded),
            multiple,
        )
    return rounded


def paintable(
    decoder: DecoderStage,
    width: int,
    height: int,
    named: str = "width and height",
    otherwise: str = "set both to 0",
) -> Size:
    """Height and width of the next larger pictures that the decoder can paint.

    Args:
        width, height: from 1 on.
        named, otherwise: for messages: what was asked for, and how one leaves it to the decoder.

    Raises:
        ValueError: another size than the only one that it has, or more than LARGEST_STRETCH times its own.
    """
    own, multiple = decoder.picture_size, _multiple(decoder)
    rounded = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    if decoder.network.config.fixed_size and rounded != (own, own):
        raise ValueError(
            f"{named}: found {width}×{height}, but this decoder paints {own}×{own} pixels only; {otherwise}"
        )
    if max(rounded) > LARGEST_STRETCH * own:
        raise ValueError(
            f"{named}: found {width}×{height}, but this decoder learned {own}×{own} pixels and paints "
            f"nothing sensible beyond {LARGEST_STRETCH} times that; choose at most {LARGEST_STRETCH * own}, "
            f"or enlarge its pictures by an upsampler"
        )
    return rounded


def _multiple(decoder: DecoderStage) -> int:
    """What sides of its pictures are multiples of, in pixels."""
    return decoder.scale * decoder.network.config.multiple_of


def network_shape(decoder: DecoderStage, size: Size) -> tuple[int, int, int]:
    """C, H and W of x_t for pictures of a size."""
    height, width = size
    return decoder.network.config.in_channels, height // decoder.scale, width // decoder.scale


def fit_to(pictures: Tensor, size: Size, fit: ImageFit = "crop") -> Tensor:
    """[B, 3, h, w] in 0..1 → [B, 3, *size]: the middle that has its proportions, or all of it, squashed."""
    height, width = size
    if height == width or fit == "squash":
        return fit_images(pictures, height, fit) if height == width else resize(pictures.float(), size)
    rows, columns = pictures.shape[-2:]
    stretch = max(height / rows, width / columns)
    covering = (max(height, round(stretch * rows)), max(width, round(stretch * columns)))
    pictures = resize(pictures.float(), covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return pictures[..., top : top + height, left : left + width]


@torch.no_grad()
def to_network(decoder: DecoderStage, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in 0..1 → what the network knows of them, [B, C, h, w] float32 on its device."""
    device, _ = device_and_dtype(decoder.network)
    pictures = pictures.to(device, torch.float32) * 2 - 1
    if decoder.autoencoder is None:
        return pictures
    with _beside(decoder.network, decoder.autoencoder) as movq:
        return torch.cat([encoded(movq, row) for row in pictures.split(1)]).float()


@torch.no_grad()
def to_pictures(decoder: DecoderStage, x: Tensor) -> Tensor:
    """What the network paints, [B, C, h, w] → pictures [B, 3, H, W] float32 in 0..1 on its device."""
    if decoder.autoencoder is not None:
        with _beside(decoder.network, decoder.autoencoder) as movq:
            x = torch.cat([decoded(movq, row).to(x.device) for row in x.split(1)]).float()
    return ((x + 1) / 2).clamp(0, 1).contiguous()


@contextmanager
def _beside(network: nn.Module, autoencoder: AutoencoderStage) -> Iterator[MoVQ]:
    """The autoencoder on the device of the network, for as long as it runs."""
    movq = autoencoder.network
    (device, _), (home, _) = device_and_dtype(network), device_and_dtype(movq)
    if device == home:
        yield movq
        return
    try:
        yield movq.to(device)
    finally:
        movq.to(home)


def encoded(movq: MoVQ, picture: Tensor) -> Tensor:
    """[1, 3, H, W] in −1..1 → [1, C, h, w], by tiles where there is not the memory for the whole."""
    device, dtype = device_and_dtype(movq)
    tile = _tile(movq, picture.shape[2] // movq.config.scale, picture.shape[3] // movq.config.scale)
    picture = picture.to(device, dtype, memory_format=torch.channels_last)
    return movq.encode(picture) if tile is None else encode_in_tiles(movq, picture, tile)


def decoded(movq: MoVQ, latent: Tensor) -> Tensor:
    """[1, C, h, w] → [1, 3, H, W] about −1..1, by tiles where there is not the memory for the whole."""
    device, dtype = device_and_dtype(movq)
    tile = _tile(movq, *latent.shape[2:])
    latent = latent.to(device, dtype, memory_format=torch.channels_last)
    return movq.decode(latent) if tile is None else decode_in_tiles(movq, latent, tile)


def _tile(movq: MoVQ, rows: int, columns: int) -> int | None:
    """Side of the tiles in which a picture fits into the memory that is free; None for the whole."""
    device, _ = device_and_dtype(movq)
    free = free_memory(device)
    if free is None or autoencoder_memory(movq, rows, columns) <= free:
        return None
    tile = max(rows, columns)
    while tile > MIN_TILE and autoencoder_memory(movq, tile, tile) > free:
        tile = -(-tile // 2)
    return max(tile, MIN_TILE)


def autoencoder_memory(movq: MoVQ, rows: int, columns: int) -> int:
    """Bytes to decode or encode one picture whose latent has so many rows and columns, beside the weights.

    At the finest level, where the first block has its input, that normalised, and its output in memory, or a
    convolution's input and output with the skip.
    """
    _, dtype = device_and_dtype(movq)
    widths, pixels = movq.config.widths, rows * columns * movq.config.scale**2
    wide = widths[1] if len(widths) > 1 else widths[0]
    return dtype.itemsize * pixels * (3 * wide + 3 * widths[0])


# --- previews ---

_MAPS: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
_SAMPLES = 12  # latents in a row and in a column of the grid from which a preview's map is fitted
_PATCH = 3  # places of the latent with one value each


def with_previews(decoder: DecoderStage, callback: StepCallback | None) -> StepCallback | None:
    """The callback, told pictures in −1..1 as x̂_0 where the network paints latents: small and approximate."""
    if callback is None or decoder.autoencoder is None:
        return callback

    def shown(step: SamplerStep) -> None:
        weights = preview_map(decoder).to(step.x0.device)
        small = F.conv2d(step.x0, weights[:-1].T[..., None, None], weights[-1])
        callback(replace(step, x0=small.clamp(-1, 1)))

    return shown


def preview_map(decoder: DecoderStage) -> Tensor:
    """[C + 1, 3]: from a latent, and 1 in its last place, to colours in −1..1. Computed once.

    Args:
        decoder: one with an autoencoder.
    """
    assert decoder.autoencoder is not None, "what paints pictures needs no map"
    movq = decoder.autoencoder.network
    if movq not in _MAPS:
        with _beside(decoder.network, decoder.autoencoder):
            _MAPS[movq] = _fit_map(movq)
    return _MAPS[movq]


@torch.no_grad()
def _fit_map(movq: MoVQ) -> Tensor:
    """[C + 1, 3]: the linear map, its constant last, from a latent to colours that decodes patches best."""
    device, dtype = device_and_dtype(movq)
    channels, scale = movq.config.latent_channels, movq.config.scale
    values = torch.randn(1, channels, _SAMPLES, _SAMPLES, generator=torch.Generator().manual_seed(0))
    latent = values.repeat_interleave(_PATCH, 2).repeat_interleave(_PATCH, 3)
    pictures = movq.decode(latent.to(device, dtype)).float().cpu()
    colours = F.avg_pool2d(pictures, _PATCH * scale).flatten(2)[0].T  # [samples, 3]
    values = F.pad(values.flatten(2)[0].T, (0, 1), value=1.0)  # [samples, C + 1]
    return torch.linalg.lstsq(values, colours).solution
