"""The stand-ins for ComfyUI's picture nodes: same values, same files, and no way out of their folders."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from unclip.cli.workflow.builtin_nodes import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
    Folders,
    LoadImage,
    LoadImageMask,
    PreviewImage,
    SaveImage,
    save_image,
    use_folders,
)
from unclip.cli.workflow.builtin_nodes.save_image import SaveAnimatedWEBP
from unclip.cli.workflow.executor import run_workflow
from unclip.cli.workflow.reading import parse_workflow
from unclip.cli.workflow.specs import ClassCatalog

from ..helpers.sources import ROOT

ORIENTATION = 0x0112


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in").mkdir()
    with use_folders(Folders(tmp_path / "in", tmp_path / "out", tmp_path / "temp")) as folders:
        yield folders


def test_the_names_are_comfyuis():
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    assert {"LoadImage", "LoadImageMask", "SaveImage", "PreviewImage"} <= set(NODE_CLASS_MAPPINGS)
    assert SaveImage.INPUT_TYPES()["hidden"] == {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
    assert list(LoadImageMask.INPUT_TYPES()["required"]) == ["image", "channel"]
    assert LoadImage.RETURN_TYPES == ("IMAGE", "MASK")


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readme_names_every_class(page):
    words = set(re.findall(r"[A-Za-z]+", (ROOT / page).read_text(encoding="utf-8")))
    assert not set(NODE_CLASS_MAPPINGS) - words


# ------------------------------------------------------------------------------------------------- LoadImage


def test_a_picture_without_alpha(folders):
    pixels = np.array([[[0, 51, 255], [10, 20, 30]]], dtype=np.uint8)
    Image.fromarray(pixels).save(folders.input / "a.png")
    image, mask = LoadImage().load_image("a.png")
    assert torch.equal(image, torch.from_numpy(pixels)[None].float() / 255)
    assert image.dtype == torch.float32
    assert mask.shape == (1, 64, 64)
    assert mask.eq(0).all()


def test_alpha_becomes_a_mask_of_what_is_transparent(folders):
    pixels = np.array([[[9, 9, 9, 255], [9, 9, 9, 0], [9, 9, 9, 51]]], dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(folders.input / "a.png")
    image, mask = LoadImage().load_image("a.png")
    assert image.shape == (1, 1, 3, 3)
    torch.testing.assert_close(mask, torch.tensor([[[0.0, 1.0, 0.8]]]))


def test_a_palette_with_a_transparent_colour(folders):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    picture.save(folders.input / "a.png", transparency=1)
    image, mask = LoadImage().load_image("a.png")
    assert mask.tolist() == [[[0.0, 1.0]]]
    assert image[0, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_the_orientation_of_photographs(folders):
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = 255  # top left
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(pixels).save(folders.input / "a.png", exif=exif)
    image, _ = LoadImage().load_image("a.png")
    assert image.shape == (1, 3, 2, 3)
    assert image[0, 0, 1].tolist() == [1.0, 1.0, 1.0]
    assert image.sum() == 3


def test_sixteen_bit_grey(folders):
    values = np.array([[0, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(folders.input / "a.png")
    image, _ = LoadImage().load_image("a.png")
    torch.testing.assert_close(image[0, 0, :, 0], torch.tensor([0.0, 128 / 255, 1.0]))


def test_an_animation_is_a_batch(folders):
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "blue")]
    frames[0].save(folders.input / "a.gif", save_all=True, append_images=frames[1:])
    image, mask = LoadImage().load_image("a.gif")
    assert image.shape == (2, 2, 4, 3)
    assert len(mask) == 2
    assert image[:, 0, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_the_list_of_pictures_and_sub_folders(folders):
    (folders.input / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "sub/c.png"):
        Image.new("RGB", (1, 1)).save(folders.input / name)
    (folders.input / "notes.txt").write_text("x")
    assert LoadImage.INPUT_TYPES()["required"]["image"][0] == ["a.jpg", "b.PNG"]
    assert LoadImage.VALIDATE_INPUTS("sub/c.png") is True


def test_annotated_names_choose_the_folder(folders):
    folders.output.mkdir()
    Image.new("RGB", (5, 1)).save(folders.output / "made.png")
    assert LoadImage().load_image("made.png [output]")[0].shape == (1, 1, 5, 3)
    assert "no picture 'made.png' in the input folder" in LoadImage.VALIDATE_INPUTS("made.png")


def test_what_was_made_is_offered_and_loaded(folders):
    SaveImage().save_images(torch.ones(1, 4, 6, 3), "fox")
    node = NODE_CLASS_MAPPINGS["LoadImageOutput"]
    assert node.INPUT_TYPES()["required"]["image"][0] == ["fox_00001_.png [output]"]
    assert node.VALIDATE_INPUTS("fox_00001_.png [output]") is True
    assert node().load_image("fox_00001_.png [output]")[0].shape == (1, 4, 6, 3)


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "../secret.png [output]"])
def test_no_way_out_of_the_input_folder(folders, name):
    Image.new("RGB", (1, 1)).save(folders.input.parent / "secret.png")
    message = LoadImage.VALIDATE_INPUTS(name)
    assert "lies outside the" in message
    assert "--input" in message
    with pytest.raises(ValueError, match="lies outside"):
        LoadImage().load_image(name)


def test_no_way_out_by_an_absolute_name(folders):
    secret = folders.input.parent / "secret.png"
    Image.new("RGB", (1, 1)).save(secret)
    assert "lies outside the input folder" in LoadImage.VALIDATE_INPUTS(str(secret))


def test_a_file_that_is_no_picture(folders):
    (folders.input / "a.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"a\.png is not a picture that can be read"):
        LoadImage().load_image("a.png")


# --------------------------------------------------------------------------------------------- LoadImageMask


@pytest.mark.parametrize(
    ("channel", "expected"), [("red", 0.2), ("green", 0.4), ("blue", 0.6), ("alpha", 0.2)]
)
def test_a_channel_as_a_mask(folders, channel, expected):
    pixels = np.array([[[51, 102, 153, 204]]], dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(folders.input / "a.png")
    (mask,) = LoadImageMask().load_image("a.png", channel)
    torch.testing.assert_close(mask, torch.tensor([[[expected]]]))


def test_alpha_of_an_opaque_picture_masks_nothing(folders):
    Image.new("RGB", (3, 2)).save(folders.input / "a.png")
    (mask,) = LoadImageMask().load_image("a.png", "alpha")
    assert mask.shape == (1, 2, 3)
    assert mask.eq(0).all()


# ------------------------------------------------------------------------------------------------- SaveImage


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_are_numbered_on_from_what_is_there(folders):
    images = torch.zeros(2, 4, 4, 3)
    shown = SaveImage().save_images(images, "fox")
    assert names(folders.output) == ["fox_00001_.png", "fox_00002_.png"]
    assert shown["ui"]["images"][0] == {"filename": "fox_00001_.png", "subfolder": "", "type": "output"}
    (folders.output / "fox_00041_.png").touch()
    (folders.output / "foxes_00099_.png").touch()
    SaveImage().save_images(images[:1], "fox")
    assert folders.written[-1].name == "fox_00042_.png"


@pytest.mark.parametrize("saver", ["SaveImage", "PreviewImage"])
def test_a_graph_goes_on_behind_what_saves(folders, saver):
    Image.new("RGB", (5, 4), "red").save(folders.input / "a.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": saver, "inputs": {"images": ["1", 0], "filename_prefix": "first"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "second"}},
    }
    catalog = ClassCatalog(NODE_CLASS_MAPPINGS)
    run_workflow(parse_workflow(graph, catalog), catalog)
    first, second = folders.written
    assert second.name == "second_00001_.png" and first.read_bytes() != b""
    with Image.open(second) as picture:
        assert picture.size == (5, 4) and picture.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("links", [True, False])
def test_a_number_that_another_run_has_taken_meanwhile_stays_its_own(folders, monkeypatch, links):
    def taken_meanwhile(*where):
        found = place(*where)
        (found.folder / f"fox_{found.number:05}_.png").write_bytes(b"another's")
        (found.folder / f"film_{found.number:05}_.webp").write_bytes(b"another's")
        return found

    place = save_image.place
    monkeypatch.setattr(save_image, "place", taken_meanwhile)
    if not links:  # a file system that has none
        monkeypatch.setattr(os, "link", _no_links)
    images = torch.zeros(2, 4, 4, 3)
    shown = SaveImage().save_images(images, "fox")
    assert [each["filename"] for each in shown["ui"]["images"]] == ["fox_00002_.png", "fox_00003_.png"]
    SaveAnimatedWEBP().save_images(images, "film", 6.0, True, 80, "fastest")
    assert [path.name for path in folders.written[2:]] == ["film_00003_.webp"]
    for name in ("fox_00001_.png", "film_00002_.webp"):
        assert (folders.output / name).read_bytes() == b"another's"
    assert not [name for name in names(folders.output) if name.endswith(".tmp")]


def _no_links(*_):
    raise PermissionError("no links here")


def test_sub_folders(folders):
    shown = SaveImage().save_images(torch.zeros(1, 4, 4, 3), "animals/small/fox")
    assert names(folders.output) == ["animals/small/fox_00001_.png"]
    assert shown["ui"]["images"][0]["subfolder"] == "animals/small"


def test_size_and_date_in_the_prefix(folders):
    SaveImage().save_images(torch.zeros(1, 4, 8, 3), "%width%x%height%-%year%")
    (name,) = names(folders.output)
    assert name.startswith("8x4-2")
    assert name.endswith("_00001_.png")


@pytest.mark.parametrize("prefix", ["../fox", "a/../../fox", "/etc/fox", ".", ""])
def test_no_way_out_of_the_output_folder(folders, prefix):
    with pytest.raises(ValueError, match="is not a name inside the output folder"):
        SaveImage().save_images(torch.zeros(1, 4, 4, 3), prefix)
    assert not (folders.output.parent / "fox_00001_.png").exists()


def test_metadata_is_written_as_comfyui_does(folders):
    prompt = {"1": {"class_type": "A", "inputs": {"text": "лиса"}}}
    workflow = {"nodes": [], "version": 0.4}
    SaveImage().save_images(torch.zeros(1, 4, 4, 3), "fox", prompt, {"workflow": workflow, "other": 1})
    with Image.open(folders.written[0]) as picture:
        chunks = dict(picture.text)
    assert chunks == {"prompt": json.dumps(prompt), "workflow": json.dumps(workflow), "other": "1"}


def test_without_a_ui_form_only_the_prompt_is_written(folders):
    SaveImage().save_images(torch.zeros(1, 4, 4, 3), "fox", {"1": {}}, None)
    with Image.open(folders.written[0]) as picture:
        assert list(picture.text) == ["prompt"]


def test_pixels_are_cut_off_to_eight_bits_as_comfyui_does(folders):
    values = torch.tensor([-1.0, 0.0, 0.5, 0.999, 1.0, 2.0])
    SaveImage().save_images(values[None, None, :, None].expand(1, 1, 6, 3), "fox")
    with Image.open(folders.written[0]) as picture:
        assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_saved_pictures_load_again(folders):
    image = torch.randint(0, 256, (1, 5, 7, 3), generator=torch.Generator().manual_seed(0)) / 255.0
    SaveImage().save_images(image, "fox")
    loaded, _ = LoadImage().load_image("fox_00001_.png [output]")
    torch.testing.assert_close(loaded, image, atol=1.01 / 255, rtol=0)


def test_an_interrupted_write_leaves_nothing(folders, monkeypatch):
    def half(self, path, **options):
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        SaveImage().save_images(torch.zeros(1, 4, 4, 3), "fox")
    assert names(folders.output) == []
    assert folders.written == []


def test_previews_stay_out_of_the_output_folder(folders):
    shown = PreviewImage().save_images(torch.zeros(1, 4, 4, 3))
    assert not folders.output.exists()
    assert folders.written[0].parent == folders.temp.resolve()
    assert shown["ui"]["images"][0]["type"] == "temp"
