"""Files of pictures to squares of pixels, as networks are trained on them."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .settings import Crop

ENDINGS = ("jpg", "jpeg", "png", "webp")
_WHITE = (255, 255, 255)


class UnfitPictureError(ValueError):
    """A picture that a filter leaves out, or that is none."""


def open_picture(content: bytes, min_side: int = 0, max_aspect: float | None = None) -> Image.Image:
    """A picture from its file, not yet decoded.

    Raises:
        UnfitPictureError: it is too small, too long, too large to be decoded, or no picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
        except Exception as error:  # Pillow's readers raise many kinds over damaged files
            raise UnfitPictureError(_reason(error)) from error
    short, long = sorted(picture.size)
    if short < max(1, min_side):
        raise UnfitPictureError(f"its smaller side has {short} pixels, fewer than {max(1, min_side)}")
    if max_aspect is not None and long > max_aspect * short:
        raise UnfitPictureError(f"{picture.width}×{picture.height} is longer than 1:{max_aspect:g}")
    return picture


def square(picture: Image.Image, size: int, crop: Crop, rng: random.Random) -> np.ndarray:
    """The picture as people see it, its smaller side brought to ``size`` and cropped to a square.

    EXIF turns are done, transparency lies over white.

    Returns:
        [size, size, 3] uint8.

    Raises:
        UnfitPictureError: it cannot be decoded.
    """
    picture = upright(picture, size)
    side = min(picture.size)
    left, top = (
        rng.randint(0, room) if crop == "random" else room // 2
        for room in (picture.width - side, picture.height - side)
    )
    if side != size:
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    elif picture.size != (size, size):
        picture = picture.crop((left, top, left + side, top + side))
    return np.array(picture)  # a copy: what Pillow hands out cannot be written to, and torch minds


def upright(picture: Image.Image, enough: int | None = None) -> Image.Image:
    """The picture as people see it, in RGB: EXIF turns are done, transparency lies over white.

    Args:
        enough: pixels of the smaller side that are wanted: a larger JPEG may come smaller, not below that.

    Raises:
        UnfitPictureError: it cannot be decoded.
    """
    try:
        if enough is not None:
            short = min(picture.size)
            # It can be decoded at a half, a quarter or an eighth of its size, at a fraction of the cost.
            picture.draft("RGB", (picture.width * enough // short, picture.height * enough // short))
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            picture = Image.new("RGB", layer.size, _WHITE)
            picture.paste(layer, mask=layer.getchannel("A"))
        else:
            picture = _eight_bits(picture)
            if picture.mode != "RGB":  # Pillow would copy it
                picture = picture.convert("RGB")
    except Exception as error:  # as above
        raise UnfitPictureError(_reason(error)) from error
    return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow cuts off what it does not divide: 16 bits a channel would turn white."""
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text names an object
        return "no picture that can be read (JPEG, PNG or WebP)"
    return str(error) or type(error).__name__
