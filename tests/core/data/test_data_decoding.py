"""Files of pictures to squares: scaling, crops, EXIF, transparency, filters."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from unclip.core.data.decoding import UnfitPictureError, open_picture, square

from ...helpers.pictures import encoded, picture


def decoded(content: bytes, size: int = 16, crop: str = "center") -> np.ndarray:
    return square(open_picture(content), size, crop, random.Random(0))


def test_a_picture_is_scaled_and_cropped_to_its_middle() -> None:
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (16, 0, 48, 32))
    assert (decoded(encoded(wide))[:, 1:-1] == (0, 0, 255)).all()
    moved = {square(open_picture(encoded(wide)), 16, "random", random.Random(i)).tobytes() for i in range(9)}
    assert len(moved) > 5


def test_exif_turns_are_done() -> None:
    upright = Image.new("RGB", (32, 32), "white")
    upright.paste("black", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = decoded(encoded(upright, "jpg", exif=exif.tobytes(), quality=95))
    assert found[2].mean() > 240 > 15 > found[-3].mean()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 32, 16))
    image = clear.convert(mode)
    found = decoded(encoded(image, **({"transparency": image.getpixel((0, 31))} if mode == "P" else {})))
    assert found[2].max() < 40
    assert found[-3].min() > 240


def test_sixteen_bits_keep_their_grey() -> None:
    grey = Image.fromarray(np.full((20, 20), 0x8000, np.uint16))
    assert abs(int(decoded(encoded(grey)).mean()) - 128) <= 1


def test_pictures_that_do_not_fit_are_left_out() -> None:
    for content, options, reason in (
        (encoded(picture(0)), {"min_side": 41}, "its smaller side has 40 pixels, fewer than 41"),
        (encoded(picture(0, (90, 30))), {"max_aspect": 2.5}, "90×30 is longer than 1:2.5"),
        (b"no picture", {}, "no picture that can be read"),
        (b"GIF89a" + bytes(20), {}, "no picture that can be read"),
    ):
        with pytest.raises(UnfitPictureError, match=reason):
            open_picture(content, **options)
    with pytest.raises(UnfitPictureError):
        decoded(encoded(picture(0))[:300])
