"""Folders of pictures: listed, read, encoded, and encoded again where they changed."""

from __future__ import annotations

import os
import re
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from unclip.cli.workflow.builtin_nodes import Folders, LoadImage, use_folders
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import parse_workflow
from unclip.core.pictures.files import folders_below, picture_names, read_pictures
from unclip.core.pipelines import encode
from unclip.core.pipelines.encode import encode_images, encode_pictures
from unclip.core.stages import ClipStage
from unclip.nodes import NODE_CLASS_MAPPINGS, host, picture_folders

from ..helpers.bundle import tiny_bundle, write_tiny_bundle
from ..helpers.nodes import run

NODE = NODE_CLASS_MAPPINGS["UnCLIPEncodeFolder"]
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def clip() -> ClipStage:
    return tiny_bundle(upsamplers=0).clip


@pytest.fixture
def root(tmp_path):
    """An input folder, empty."""
    folder = tmp_path / "input"
    folder.mkdir()
    host.set_folders(folder, tmp_path / "output")
    yield folder
    host.set_folders(None, None)


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_pictures(folder) -> list[str]:
    """One picture of every kind, each of its own size; their names, sorted."""
    folder.mkdir(exist_ok=True)
    rgb = Image.fromarray(noise(20, 30))
    rgb.save(folder / "a rgb.png")
    Image.fromarray(noise(31, 17, 4)).save(folder / "b rgba.png")
    Image.fromarray(noise(40, 16, 1)).save(folder / "c grey.jpg")
    rgb.quantize(8).save(folder / "d palette.gif")
    deep = np.random.default_rng(1).integers(0, 65536, (24, 18)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "e sixteen.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(50, 20)).save(folder / "f turned.jpg", exif=exif)
    Image.fromarray(noise(16, 16, 2), "LA").save(folder / "g grey and alpha.PNG")
    rgb.convert("CMYK").save(folder / "h print.tif")
    transparent = rgb.quantize(8)
    transparent.save(folder / "i clear.png", transparency=0)
    return sorted(path.name for path in folder.iterdir())


# --- files ----------------------------------------------------------------------------------------------


def test_every_kind_of_picture_is_read_as_load_image_reads_it(root) -> None:
    names = write_pictures(root)
    assert picture_names(root) == names and len(names) == 9
    with use_folders(Folders(root, root)):
        for name, found in zip(names, read_pictures(root, names), strict=True):
            image, _ = LoadImage().load_image(name)  # [1, H, W, 3]
            assert torch.equal(found, image[0].movedim(-1, 0)), name
            assert found.dtype == torch.float32 and 0 <= found.min() < found.max() <= 1
    (turned,) = read_pictures(root, ["f turned.jpg"])
    assert turned.shape == (3, 50, 20)


def test_only_pictures_are_listed_and_those_below_on_demand(root) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "deep/er/c.webp", "deep/d.png", ".git/e.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "folder.png").mkdir()
    assert picture_names(root) == ["a.JPG", "b.png"]
    assert picture_names(root, subfolders=True) == ["a.JPG", "b.png", "deep/d.png", "deep/er/c.webp"]
    assert picture_folders.list_folders() == [".", "deep", "deep/er", "folder.png"]


def test_links_that_lead_back_end(root) -> None:
    (root / "a").mkdir()
    (root / "a" / "back").symlink_to(root, target_is_directory=True)
    (root / "b").symlink_to(root / "a", target_is_directory=True)
    assert folders_below(root) == [root, root / "a"]


def test_a_missing_input_folder_lists_itself(tmp_path) -> None:
    host.set_folders(tmp_path / "none", None)
    try:
        assert picture_folders.list_folders() == ["."]
        assert "there is no folder '.' in the input folder" in NODE.VALIDATE_INPUTS(folder=".")
    finally:
        host.set_folders(None, None)


# --- encoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_each_picture_is_encoded_as_alone_whatever_the_parts(clip, root, monkeypatch, fit) -> None:
    names, told = write_pictures(root), []
    monkeypatch.setattr(encode, "IMAGES_AT_ONCE", 4)
    found = encode_pictures(clip, read_pictures(root, names), fit=fit, callback=told.append)
    assert told == [4, 8, 9] and found.space == clip.space
    alone = torch.cat([encode_images(clip, p[None], fit=fit).vectors for p in read_pictures(root, names)])
    torch.testing.assert_close(found.vectors, alone, atol=1e-5, rtol=1e-5)
    other = "squash" if fit == "crop" else "crop"
    changed = encode_pictures(clip, read_pictures(root, names), fit=other).vectors
    assert (found.vectors - changed).abs().max() > 1e-3


def test_pictures_are_let_go_of_one_by_one(clip) -> None:
    """However many there are, one of their full sizes is there at a time."""
    given: list[weakref.ref] = []

    def pictures():
        for _ in range(9):
            assert all(each() is None for each in given[:-1])
            picture = torch.rand(3, 40, 40)
            given.append(weakref.ref(picture))
            yield picture

    assert len(encode_pictures(clip, pictures())) == len(given) == 9


def test_what_cannot_be_encoded(clip) -> None:
    with pytest.raises(ValueError, match="pictures: found none, expected at least one"):
        encode_pictures(clip, [])
    with pytest.raises(ValueError, match=r"pictures: found shape \(1, 1, 8, 8\)"):
        encode_pictures(clip, [torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match=r"^fit: 'pad' is not known"):
        encode_pictures(clip, [torch.zeros(3, 16, 16)], fit="pad")


# --- the node -------------------------------------------------------------------------------------------


def test_the_node_encodes_a_folder(clip, root, monkeypatch) -> None:
    write_pictures(root / "cats")
    shown: list[tuple] = []

    class Progress:
        def __init__(self, title, total):
            shown.append((title, total))

        def __enter__(self):
            return lambda *counts: shown.append(counts)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(host, "_progress_factory", Progress)
    monkeypatch.setattr(encode, "IMAGES_AT_ONCE", 5)
    embedding, count, names = run("UnCLIPEncodeFolder", clip=clip, folder="cats")
    assert shown == [("Encode", 9), (5, 9), (9, 9)]
    assert count == len(embedding) == 9 and names.splitlines() == picture_names(root / "cats")
    (first,) = read_pictures(root / "cats", ["a rgb.png"])
    torch.testing.assert_close(embedding.vectors[:1], encode_images(clip, first[None]).vectors)

    part, count, names = run("UnCLIPEncodeFolder", clip=clip, folder="cats", max_pictures=2)
    assert count == 2 and names == "a rgb.png\nb rgba.png"
    torch.testing.assert_close(part.vectors, embedding.vectors[:2])
    _, count, names = run("UnCLIPEncodeFolder", clip=clip, folder=".", subfolders=True, max_pictures=50)
    assert count == 9 and names.splitlines()[0] == "cats/a rgb.png"
    pca, _ = run("UnCLIPPCAFit", embedding=embedding, components=4)
    assert len(pca) == 4


def test_what_the_node_refuses(clip, root) -> None:
    (root / "empty" / "deep").mkdir(parents=True)
    (root / "empty" / "notes.txt").write_text("no picture")
    given = {"clip": clip, "folder": "empty"}
    with pytest.raises(
        ValueError, match=r"^folder: there are no pictures in .*empty\. .* turn subfolders on"
    ):
        run("UnCLIPEncodeFolder", **given)
    with pytest.raises(
        ValueError, match=r"^folder: there are no pictures in .*empty\. .* choose another"
    ) as e:
        run("UnCLIPEncodeFolder", **given, subfolders=True)
    assert "subfolders" not in str(e.value)
    with pytest.raises(ValueError, match=r"^max_pictures: found -1, expected a whole number from 0"):
        run("UnCLIPEncodeFolder", **given, max_pictures=-1)
    with pytest.raises(ValueError, match=r"^clip: nothing arrived"):
        run("UnCLIPEncodeFolder", **{**given, "clip": None})
    for name in ("none", "../input", "..", str(root), "C:\\x", ""):
        with pytest.raises(ValueError, match=r"^folder: "):
            run("UnCLIPEncodeFolder", clip=clip, folder=name)
        told = NODE.VALIDATE_INPUTS(folder=name)
        assert isinstance(told, str) and not told.startswith("folder: "), "ComfyUI writes the name before it"
    assert NODE.VALIDATE_INPUTS(folder=None) is True and NODE.VALIDATE_INPUTS(folder="empty/deep") is True


def test_files_that_cannot_be_read_are_named(clip, root) -> None:
    write_pictures(root)
    for number in range(10):
        (root / f"z{number:02}.png").write_bytes(b"<html>not found</html>")
    (root / "y.jpg").touch()
    with pytest.raises(
        ValueError, match=r"^folder: 11 of the files in .* cannot be read as pictures: y\.jpg"
    ) as e:
        run("UnCLIPEncodeFolder", clip=clip, folder=".")
    assert "z06.png (no picture) and 3 more" in str(e.value) and "z07" not in str(e.value)
    assert str(e.value).endswith("and 3 more. Remove them, or save them again as PNG or JPEG.")
    for path in [*root.glob("z*"), root / "y.jpg"]:
        path.unlink()
    whole = (root / "c grey.jpg").read_bytes()
    (root / "c grey.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"^folder: 1 of the files .*: c grey\.jpg \(image file is truncated"
    ):
        run("UnCLIPEncodeFolder", clip=clip, folder=".")


def test_a_changed_folder_is_encoded_again(root) -> None:
    write_pictures(root)
    (root / "below").mkdir()
    Image.new("RGB", (4, 4)).save(root / "below" / "a.png")

    def state(**changed) -> str:
        return NODE.IS_CHANGED(
            **{"folder": ".", "subfolders": False, "max_pictures": 0, "clip": 1, **changed}
        )

    first, two, deep = state(), state(max_pictures=2), state(subfolders=True)
    assert len({first, two, deep}) == 3 and state() == first
    (root / "notes.txt").touch()
    Image.new("RGB", (4, 4)).save(root / "below" / "b.png")
    assert (state(), state(max_pictures=2)) == (first, two) and state(subfolders=True) != deep
    stamp = (root / "i clear.png").stat().st_mtime_ns + 10**9
    os.utime(root / "i clear.png", ns=(stamp, stamp))
    assert state() != first and state(max_pictures=2) == two  # which does not take the last one
    (root / "a rgb.png").rename(root / "0.png")
    assert state(max_pictures=2) != two


@pytest.mark.parametrize("wired", ["subfolders", "max_pictures", "folder"])
def test_a_folder_whose_inputs_come_by_wires_is_encoded_again_when_it_changed(root, wired) -> None:
    """ComfyUI asks with None for what comes by a wire: it may be anything."""
    write_pictures(root / "mine")
    (root / "mine" / "below").mkdir()
    given = {"folder": "mine", "subfolders": wired == "max_pictures", "max_pictures": 1, "clip": None}

    def state() -> str:
        return NODE.IS_CHANGED(**{**given, wired: None})

    first = state()
    assert state() == first
    (root / "notes.txt").touch()
    (root / "beside").mkdir()
    assert state() == first
    for name in ("mine/z.png", "mine/below/z.png"):  # not the first by name
        Image.new("RGB", (4, 4)).save(root / name)
        assert state() != first, name
        first = state()


def test_the_command_line_encodes_a_folder(tmp_path, monkeypatch) -> None:
    write_tiny_bundle(tmp_path / "models" / "tiny", upsamplers=0)
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path / "models"))
    write_pictures(tmp_path / "mine")
    catalog = local_catalog()
    load = {"class_type": "UnCLIPLoadBundle", "inputs": {"bundle": "tiny", "precision": "fp32"}}
    folder = {"folder": ".", "subfolders": False, "max_pictures": 3, "fit": "squash"}
    graph = {
        "1": load,
        "2": {"class_type": "UnCLIPEncodeFolder", "inputs": {"clip": ["1", 0], **folder}},
        "3": {
            "class_type": "UnCLIPSaveEmbedding",
            "inputs": {"embedding": ["2", 0], "filename_prefix": "mine"},
        },
    }
    chosen = Folders(tmp_path / "mine", tmp_path / "output")
    run_here(parse_workflow(graph, catalog), catalog, chosen, device="cpu", quiet=True)
    (path,) = chosen.written
    assert re.fullmatch(r"mine_00001_\.safetensors", path.name)
