"""Picture files of every kind and condition: their values, or an error that names them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from unclip.core.pictures.files import read_pictures
from unclip.core.pictures.opening import read_file, upright
from unclip.core.pictures.sheet import from_pil

HUGE = struct.pack(">II", 20000, 20000)
BOMB = b"[" * (2 << 20)


def read(path):
    """[H, W] of a picture whose three channels are alike."""
    pixels = read_file(path, lambda opened: from_pil(upright(opened)))[0]
    assert torch.equal(pixels, next(iter(read_pictures(path.parent, [path.name]))))
    assert torch.equal(pixels[0], pixels[2])
    return pixels[0]


def noise(height=64, width=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png():
    file = io.BytesIO()
    noise(16, 16).save(file, "PNG")
    return file.getvalue()


# ---------------------------------------------------------------------------------------- numbers of any kind


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
def test_floating_point_from_0_to_1_is_black_to_white(tmp_path, suffix):
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    Image.fromarray(ramp).save(tmp_path / f"depth{suffix}")
    torch.testing.assert_close(read(tmp_path / f"depth{suffix}"), torch.from_numpy(ramp), atol=1e-6, rtol=0)


def test_a_dark_float_picture_stays_dark(tmp_path):
    """Its own maximum is not taken for white."""
    Image.fromarray(np.full((2, 2), 0.2, np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").unique().tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.float32([[0, 200]]), "floating-point numbers from 0 to 200"),
        (np.float32([[-0.5, 1]]), "floating-point numbers from -0.5 to 1"),
        (np.float32([[0, np.nan]]), "NaN or infinite"),
        (np.float32([[0, np.inf]]), "NaN or infinite"),
        (np.int32([[0, 2**30]]), "whole numbers from 0 to 1.07374e\\+09"),
        (np.int32([[-9000, 5]]), "whole numbers from -9000 to 5"),
    ],
)
def test_numbers_whose_white_nobody_knows_are_refused_by_name(tmp_path, values, found):
    Image.fromarray(values).save(tmp_path / "render.tif")
    with pytest.raises(ValueError, match=rf"render\.tif .*{found}.*Save it again"):
        read_file(tmp_path / "render.tif", upright)
    with pytest.raises(ValueError, match=rf"render\.tif .*{found}"):
        list(read_pictures(tmp_path, ["render.tif"]))


def test_whole_numbers_of_16_bits_in_32(tmp_path):
    Image.fromarray(np.int32([[0, 32896, 65535]])).save(tmp_path / "a.tif")
    torch.testing.assert_close(read(tmp_path / "a.tif")[0], torch.tensor([0.0, 128 / 255, 1.0]))


# ---------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(("kind", "cut"), [("JPEG", 2), ("JPEG", 300), ("PNG", 300)])
def test_a_picture_without_its_end_is_shown_as_far_as_it_goes(tmp_path, caplog, kind, cut):
    file = io.BytesIO()
    noise().save(file, kind)
    (tmp_path / "holiday.jpg").write_bytes(file.getvalue()[:-cut])
    found = read_file(tmp_path / "holiday.jpg", from_pil)[0]
    assert torch.equal(found[:, :16], from_pil(Image.open(file))[0, :, :16])
    assert "holiday.jpg is cut short" in caplog.text
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_folder_is_not_encoded_with_a_cut_picture_in_it(tmp_path):
    file = io.BytesIO()
    noise().save(file, "JPEG")
    (tmp_path / "holiday.jpg").write_bytes(file.getvalue()[:-300])
    with pytest.raises(ValueError, match=r"holiday\.jpg \(.*truncated"):
        list(read_pictures(tmp_path, ["holiday.jpg"]))


@pytest.mark.parametrize(
    ("what", "damage", "reason"),
    [
        (
            "size",
            lambda d: d[:8] + chunk(b"IHDR", struct.pack(">II", 20000, 20000) + d[24:29]) + d[33:],
            "pixels",
        ),
        (
            "text",
            lambda d: d[:33] + chunk(b"zTXt", b"x\0\0" + zlib.compress(b"[" * (2 << 20))) + d[33:],
            "large",
        ),
        ("other", lambda d: b"hello", "no picture"),
        ("nothing", lambda d: b"", "no picture"),
        ("no pixels", lambda d: d[: d.find(b"IDAT") - 4] + chunk(b"IEND", b""), ""),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, what, damage, reason):
    path = tmp_path / "holiday.png"
    path.write_bytes(damage(png()))
    with pytest.raises(ValueError, match=rf"(?i)holiday\.png is not a picture that can be read: .*{reason}"):
        read_file(path, from_pil)


def test_odd_exif_data_cost_nothing_but_the_orientation(tmp_path):
    whole = png()
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk(b"eXIf", b"nothing") + whole[33:])
    pixels = read_file(tmp_path / "a.png", lambda opened: from_pil(upright(opened)))[0]
    assert torch.equal(pixels, from_pil(noise(16, 16))[0])
