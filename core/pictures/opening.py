"""Picture files opened, whatever they hold: upright, in 8 bits, each fault told with the file's name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

SIXTEEN_BITS = 65535
_SAVE_AGAIN = "Save it again as a PNG with 8 or 16 bits"

Read = TypeVar("Read")


def read_file(path: Path, read: Callable[[Image.Image], Read]) -> Read:
    """What ``read`` makes of an opened picture file; one that ends too early is read as far as it goes.

    So does ComfyUI's Load Image: downloads that were cut off and photographs of some phones lack their last
    bytes. What is missing is grey, and a warning names the file.

    Raises:
        ValueError: no picture, or one that decoders cannot read; names the file and the reason.
    """
    try:
        try:
            return _opened(path, read)
        except OSError as error:
            with _cut_files_allowed():
                result = _opened(path, read)
            logger.warning("%s is cut short or damaged (%s); what is there is used", path.name, error)
            return result
    except Exception as error:  # decoders raise whatever they stumble over, SyntaxError among it
        raise ValueError(f"{path.name} is not a picture that can be read: {reason(error)}.") from error


def reason(error: Exception) -> str:
    """Why a picture cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"it says that it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
    return (str(error) or type(error).__name__).rstrip(".")


def upright(frame: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says, deeper grey brought to 8 bits.

    Grey of 16 bits (also in 32-bit files) is 0 to 65535, and of floating point (depth maps, renders) 0 to 1.

    Raises:
        ValueError: other numbers than those, whose white nobody knows.
    """
    with contextlib.suppress(Exception):  # EXIF data of any kind must not cost the picture
        frame = ImageOps.exif_transpose(frame)
    if frame.mode == "F":
        return _eight_bits(frame, 1.0, "floating-point numbers")
    if frame.mode.startswith("I"):
        return _eight_bits(frame, float(SIXTEEN_BITS), "whole numbers")
    return frame


def _eight_bits(frame: Image.Image, white: float, kind: str) -> Image.Image:
    values = np.asarray(frame, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"it holds NaN or infinite numbers. {_SAVE_AGAIN}")
    low, high, slack = values.min(initial=0.0), values.max(initial=0.0), white / 510  # half a step of 8 bits
    if low < -slack or high > white + slack:
        raise ValueError(
            f"it holds {kind} from {low:g} to {high:g}; expected 0, black, to {white:g}, white. {_SAVE_AGAIN}"
        )
    return Image.fromarray((values * (255.0 / white)).round().clip(0, 255).astype(np.uint8), "L")


def _opened(path: Path, read: Callable[[Image.Image], Read]) -> Read:
    with Image.open(path) as picture:
        return read(picture)


@contextlib.contextmanager
def _cut_files_allowed() -> Iterator[None]:
    """Pillow keeps this choice for the whole process."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
