"""The stand-ins for ComfyUI's primitive nodes, ImageScale, and the nodes that write animations and videos."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from unclip.cli.workflow import parse_workflow
from unclip.cli.workflow.builtin_nodes import NODE_CLASS_MAPPINGS, Folders, use_folders
from unclip.cli.workflow.errors import WorkflowError
from unclip.cli.workflow.executor import run_workflow
from unclip.cli.workflow.specs import ClassCatalog

from ..helpers.workflow import Show, UiBuilder

CATALOG = ClassCatalog({**NODE_CLASS_MAPPINGS, "Show": Show})
PROMPT = {"1": {"class_type": "A", "inputs": {"text": "лиса"}}}
WORKFLOW = {"nodes": [], "links": [], "version": 0.4}


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in").mkdir()
    with use_folders(Folders(tmp_path / "in", tmp_path / "out", tmp_path / "temp")) as folders:
        yield folders


def pictures(count=3, height=12, width=16):
    """Smooth ones, which survive lossy compression."""
    ramp = torch.linspace(0, 1, width).expand(height, width)
    shades = torch.linspace(0.2, 1, count)[:, None, None]
    return torch.stack([ramp * shades, 1 - ramp * shades, shades.expand(-1, height, width)], dim=-1)


# ------------------------------------------------------------------------------------------ primitives


@pytest.mark.parametrize(
    ("kind", "stored", "value"),
    [
        ("PrimitiveString", [" a {b|c} "], " a {b|c} "),
        ("PrimitiveStringMultiline", ["two\nlines"], "two\nlines"),
        ("PrimitiveInt", [2**52, "fixed"], 2**52),
        ("PrimitiveInt", [-7, "randomize"], -7),
        ("PrimitiveFloat", [-0.25], -0.25),
        ("PrimitiveBoolean", [False], False),
    ],
)
def test_a_value_is_given_as_it_is(kind, stored, value):
    ui = UiBuilder()
    given = ui.node(kind, *stored, outputs=(NODE_CLASS_MAPPINGS[kind].RETURN_TYPES[0],))
    ui.link(given, 0, ui.node("Show", inputs={"value": "*"}), "value")
    shown = run_workflow(parse_workflow(ui.json(), CATALOG), CATALOG)
    assert shown["2"]["seen"] == [value] and type(shown["2"]["seen"][0]) is type(value)


# ------------------------------------------------------------------------------------------ ImageScale


def scale(image, method, width, height, crop="disabled"):
    return NODE_CLASS_MAPPINGS["ImageScale"]().scale(image, method, width, height, crop)[0]


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic"])
def test_pictures_are_scaled_as_pytorch_does(method):
    image = torch.rand(2, 10, 14, 3)
    found = scale(image, method, 7, 20)
    expected = torch.nn.functional.interpolate(image.movedim(-1, 1), (20, 7), mode=method).movedim(1, -1)
    assert found.shape == (2, 20, 7, 3) and torch.equal(found, expected)


def test_lanczos_is_pillows():
    image = torch.rand(2, 10, 14, 3)
    found = scale(image, "lanczos", 7, 20)
    for each, result in zip(image, found, strict=True):
        whole = Image.fromarray((each.numpy() * 255).astype(np.uint8)).resize(
            (7, 20), Image.Resampling.LANCZOS
        )
        assert torch.equal(result, torch.from_numpy(np.asarray(whole).astype(np.float32) / 255))


def test_a_side_of_zero_follows_the_other_and_two_keep_the_picture():
    image = torch.rand(1, 10, 20, 3)
    assert scale(image, "area", 10, 0).shape == (1, 5, 10, 3)
    assert scale(image, "area", 0, 30).shape == (1, 30, 60, 3)
    assert torch.equal(scale(image, "area", 0, 0), image)


@pytest.mark.parametrize("method", ["bicubic", "lanczos"])
def test_a_factor_scales_both_sides(method):
    image = torch.rand(2, 10, 15, 3)
    (found,) = NODE_CLASS_MAPPINGS["ImageScaleBy"]().scale(image, method, 1.5)
    assert torch.equal(found, scale(image, method, 22, 15))  # 22.5 is rounded to the even number
    assert NODE_CLASS_MAPPINGS["ImageScaleBy"]().scale(image, method, 0.01)[0].shape == (2, 1, 1, 3)


def test_the_middle_is_what_a_crop_keeps():
    image = torch.zeros(1, 10, 30, 3)
    image[:, :, 10:20] = 1
    assert scale(image, "bilinear", 8, 8, "center").eq(1).all()
    assert scale(image.transpose(1, 2), "bilinear", 8, 8, "center").eq(1).all()
    assert not scale(image, "bilinear", 8, 8).eq(1).all()


# What ComfyUI's arithmetic (comfy/utils.py, common_upscale) cuts off on the left and at the top.
CUTS = [
    ((801, 720), (64, 64), (40, 0)),  # 40.5
    ((720, 801), (64, 64), (0, 40)),
    ((720, 751), (64, 64), (0, 16)),  # 15.5
    ((768, 901), (32, 32), (0, 66)),
    ((1226, 507), (581, 581), (360, 0)),
    ((799, 450), (64, 64), (175, 0)),
    ((1021, 768), (64, 48), (0, 1)),
    ((683, 1024), (64, 64), (0, 170)),
    ((64, 48), (32, 24), (0, 0)),
]


@pytest.mark.parametrize(("size", "wanted", "cut"), CUTS)
def test_a_crop_begins_at_comfyuis_pixel(size, wanted, cut):
    (width, height), (x, y) = size, cut
    image = torch.rand(1, height, width, 1)
    found = scale(image, "nearest-exact", *wanted, "center")
    assert torch.equal(found, scale(image[:, y : height - y, x : width - x], "nearest-exact", *wanted))


# ------------------------------------------------------------------------------------------ animations


def test_an_animated_webp_holds_the_frames_and_the_workflow(folders):
    images = pictures()
    answer = NODE_CLASS_MAPPINGS["SaveAnimatedWEBP"]().save_images(
        images, "anim/fox", 4.0, True, 80, "fastest", PROMPT, {"workflow": WORKFLOW}
    )
    assert answer["ui"] == {
        "images": [{"filename": "fox_00001_.webp", "subfolder": "anim", "type": "output"}],
        "animated": [True],
    }
    assert answer["result"][0] is images
    (path,) = folders.written
    with Image.open(path) as opened:
        assert opened.n_frames == 3
        for index, image in enumerate(images):
            opened.seek(index)
            opened.load()
            assert opened.info["duration"] == 250
            assert np.array_equal(np.asarray(opened.convert("RGB")), (image.numpy() * 255).astype(np.uint8))
        exif = opened.getexif()
    assert exif[0x0110] == f"prompt:{json.dumps(PROMPT)}"
    assert exif[0x010F] == f"workflow:{json.dumps(WORKFLOW)}"


# ------------------------------------------------------------------------------------------ video


def save_video(images, fps=12.5, depth=8, audio=None):
    (video,) = NODE_CLASS_MAPPINGS["CreateVideo"]().create(images, fps, audio, depth)
    answer = NODE_CLASS_MAPPINGS["SaveVideo"]().save(
        video, "video/fox", "auto", "auto", PROMPT, {"workflow": WORKFLOW}
    )
    assert answer["result"][0] is video
    return answer


@pytest.mark.parametrize(("depth", "pixels"), [(8, "yuv420p"), (10, "yuv420p10le")])
def test_a_video_shows_its_pictures_and_carries_the_workflow(folders, depth, pixels):
    av = pytest.importorskip("av")
    images = pictures(5, 48, 64)
    answer = save_video(images, depth=depth)
    assert answer["ui"]["images"] == [{"filename": "fox_00001_.mp4", "subfolder": "video", "type": "output"}]
    (path,) = folders.written
    with av.open(str(path)) as file:
        assert json.loads(file.metadata["prompt"]) == PROMPT
        assert json.loads(file.metadata["workflow"]) == WORKFLOW
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == pixels
        assert stream.average_rate == Fraction(25, 2)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(frames) == 5
    for frame, image in zip(frames, images, strict=True):
        assert frame.shape == image.shape
        assert np.abs(frame / 255 - image.numpy()).mean() < 0.03
    assert [path.name for path in path.parent.iterdir()] == ["fox_00001_.mp4"]


@pytest.mark.parametrize("depth", [8, 10])
def test_a_video_is_converted_by_the_colours_that_it_tells(folders, depth):
    av = pytest.importorskip("av")
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.5, 0.1]])
    save_video(colours[:, None, None].expand(4, 64, 64, 3), depth=depth)
    with av.open(str(folders.written[0])) as file:
        told = file.streams.video[0].codec_context
        assert (told.color_primaries, told.color_trc, told.colorspace, told.color_range) == (1, 13, 1, 1)
        frames = [
            frame.reformat(format="rgb24", src_colorspace=1).to_ndarray()[32, 32]  # BT.709
            for frame in file.decode(video=0)
        ]
    assert np.abs(np.stack(frames) / 255 - colours.numpy()).max() < 0.03


def video_graph(inputs):
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8}},
        "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "v", **inputs}},
    }


def video_size(folders, workflow):
    """Bytes of the pictures in the video that a workflow makes of noise."""
    av = pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folders.input / "a.png")
    warnings = []
    run_workflow(parse_workflow(workflow, CATALOG), CATALOG, warn=warnings.append)
    assert not warnings
    with av.open(str(folders.written[-1])) as file:
        return sum(packet.size for packet in file.demux(video=0))


CODED = {"format": "mp4", "format.codec": "h264", "format.codec.encoding": "re-encode"}


@pytest.mark.parametrize(
    "inputs",
    [
        {"format": "auto", "codec": "auto"},  # before ComfyUI 0.33
        {"format": "mp4", "codec": "h264"},
        {"format": "auto"},
        {"format": "auto", "format.codec": "auto", "codec": "auto"},
        {"format": "mp4", "format.codec": "h264", "format.codec.encoding": "auto", "codec": "auto"},
        {**CODED, "format.codec.encoding.crf": 10, "format.codec.encoding.color_space": "sRGB"},
        {"format": "mp4", "codec": "h264", "codec.encoding": "re-encode", "codec.encoding.crf": 10},
    ],
)
def test_a_video_is_saved_from_the_graphs_of_each_version(folders, inputs):
    assert video_size(folders, video_graph(inputs)) > 0


def test_the_factor_of_an_encoding_mode_sets_the_quality(folders):
    best, worst = (
        video_size(folders, video_graph({**CODED, "format.codec.encoding.crf": crf})) for crf in (5.0, 50.0)
    )
    assert best > 2 * worst
    older = {"format": "mp4", "codec": "h264", "codec.encoding": "re-encode", "codec.encoding.crf": 50.0}
    assert video_size(folders, video_graph(older)) == worst


@pytest.mark.parametrize(
    ("stored", "crf"),
    [
        (["v", "auto", "auto"], None),  # before ComfyUI 0.33
        (["v", "mp4", "h264"], None),
        (["v", "auto", "auto", "auto"], None),
        (["v", "mp4", "h264", "auto", "auto"], None),
        (["v", "mp4", "h264", "re-encode", 50, "auto", "auto"], 50),
    ],
)
def test_the_widgets_of_a_video_are_read_by_what_its_choices_bring(folders, stored, crf):
    ui = UiBuilder()
    ui.node("LoadImage", "a.png", "image", outputs=("IMAGE", "MASK"))
    ui.node("CreateVideo", 8, 8, inputs={"images": "IMAGE"}, outputs=("VIDEO",))
    ui.node("SaveVideo", *stored, inputs={"video": "VIDEO"})
    ui.link(1, 0, 2, "images")
    ui.link(2, 0, 3, "video")
    inputs = parse_workflow(ui.json(), CATALOG).nodes["3"].inputs
    assert (inputs["format"], inputs["format.codec"]) == (stored[1], stored[2])
    assert inputs.get("format.codec.encoding.crf") == crf
    plain, worst = (video_size(folders, each) for each in (video_graph({"format": "mp4"}), ui.json()))
    assert (worst < plain / 2) is (crf is not None)


@pytest.mark.parametrize(
    ("inputs", "name", "found"),
    [
        ({"format": "webm"}, "format", '\'webm\', expected one of "auto", "mp4"'),
        ({"format": "mp4", "format.codec": "av1"}, "format.codec", "'av1', expected one of"),
        ({"format": "mp4", "codec": "av1"}, "codec", "'av1', expected"),
        ({**CODED, "format.codec.encoding": "fast"}, "format.codec.encoding", "'fast', expected"),
        ({**CODED, "format.codec.encoding.crf": 52}, "format.codec.encoding.crf", "52.0, expected a number"),
        (
            {**CODED, "format.codec.encoding.color_space": "HDR"},
            "format.codec.encoding.color_space",
            "'HDR', expected",
        ),
    ],
)
def test_what_a_video_cannot_be_here_is_told_by_the_input(folders, inputs, name, found):
    Image.new("RGB", (64, 64)).save(folders.input / "a.png")
    with pytest.raises(WorkflowError) as caught:
        run_workflow(parse_workflow(video_graph(inputs), CATALOG), CATALOG)
    assert str(caught.value).startswith(f"node 3 (SaveVideo), input {name!r}: found {found}")
    assert not folders.written


def test_a_video_has_the_sound_that_is_given(folders):
    av = pytest.importorskip("av")
    tone = torch.sin(torch.arange(44100 * 3) * 0.05)[None, None].expand(1, 2, -1)
    save_video(pictures(10, 48, 64), fps=10.0, audio={"waveform": tone, "sample_rate": 44100})
    with av.open(str(folders.written[0])) as file:
        sound = file.streams.audio[0]
        assert (sound.codec_context.name, sound.rate, sound.layout.name) == ("aac", 44100, "stereo")
        samples = sum(frame.samples for frame in file.decode(sound))
    assert 44100 <= samples < 44100 * 1.1  # the three seconds are cut to the one of the pictures


def test_sizes_that_a_video_cannot_have_are_named(folders):
    with pytest.raises(ValueError, match=r"65×48 pixels; a video .* needs an even width"):
        save_video(pictures(2, 48, 65))
    assert not folders.output.exists()


def test_a_video_without_pyav_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"needs the package av \(PyAV\).*\[video\]"):
        save_video(pictures(2))
    assert list(folders.output.rglob("*.*")) == []
