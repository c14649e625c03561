"""Workflows inside pictures and videos, wherever and however they are written."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
from PIL import Image
from unclip.cli.workflow import load_workflow
from unclip.cli.workflow.errors import WorkflowError

from ..helpers.workflow import UiBuilder, catalog

API = {"1": {"class_type": "Show", "inputs": {"value": "лиса 狐 é"}}}


def ui_form():
    ui = UiBuilder()
    ui.node("Number", 9, "fixed", 0.5, "plain", "x", False)
    return ui.json()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(kind="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind, **options)
    return file.getvalue()


def text_chunk(kind, key, text):
    return chunk(
        kind,
        {
            b"tEXt": lambda: key + b"\0" + text,
            b"comf": lambda: key + b"\0" + text,
            b"zTXt": lambda: key + b"\0\0" + zlib.compress(text),
            b"iTXt": lambda: key + b"\0\0\0en\0\0" + text,
            b"iTXz": lambda: key + b"\0\1\0en\0\0" + zlib.compress(text),
        }[kind](),
    ).replace(b"iTXz", b"iTXt")


def read(tmp_path, data, name="a.png"):
    (tmp_path / name).write_bytes(data)
    return load_workflow(tmp_path / name, catalog())


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iTXz", b"comf"])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("escaped", [False, True])
def test_a_png_with_its_text_before_or_behind_the_pixels(tmp_path, kind, behind, escaped):
    """ComfyUI writes letters of other alphabets escaped, other programs as raw UTF-8."""
    whole = picture()
    at = whole.rindex(b"IEND") - 4 if behind else whole.index(b"IDAT") - 4
    text = json.dumps(API, ensure_ascii=escaped).encode()
    made = read(tmp_path, whole[:at] + text_chunk(kind, b"prompt", text) + whole[at:])
    assert made.nodes["1"].inputs["value"] == "лиса 狐 é"


def test_a_png_written_as_latin_1(tmp_path):
    whole = picture()
    text = '{"1": {"class_type": "Show", "inputs": {"value": "café"}}}'.encode("latin-1")
    made = read(tmp_path, whole[:33] + text_chunk(b"tEXt", b"prompt", text) + whole[33:])
    assert made.nodes["1"].inputs["value"] == "café"


def test_the_pixels_of_a_png_do_not_matter(tmp_path):
    """One that claims to be huge, and one that is cut short behind its text."""
    whole = picture()
    text = text_chunk(b"tEXt", b"prompt", json.dumps(API).encode())
    head = struct.pack(">II", 20000, 20000) + whole[24:29]
    for data in (whole[:8] + chunk(b"IHDR", head) + text + whole[33:], whole[:33] + text + whole[33:60]):
        assert set(read(tmp_path, data).nodes) == {"1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"[" * (70 << 20), 1)), "more than 64 MiB"),
        (chunk(b"zTXt", b"workflow\0\0notzlib"), "compressed text is damaged"),
        (chunk(b"tEXt", b"workflow\0{nonsense"), "its text 'workflow': not valid JSON at line 1"),
        (chunk(b"tEXt", b"workflow\0" + b"[" * 5000), "nested more than"),
        (chunk(b"tEXt", b"workflow"), "its text 'workflow': not valid JSON"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, text, message):
    whole = picture()
    with pytest.raises(WorkflowError, match=rf"a\.png: .*{message}"):
        read(tmp_path, whole[:33] + text + whole[33:])


@pytest.mark.parametrize("order", [1, -1])
def test_a_webp_as_comfyui_saves_it(tmp_path, order):
    exif = Image.Exif()
    tags = [(0x0110, f"prompt:{json.dumps(API)}"), (0x010F, f"workflow:{json.dumps(ui_form())}")]
    for tag, text in tags[::order]:
        exif[tag] = text
    made = read(tmp_path, picture("WEBP", exif=exif.tobytes()), "a.webp")
    assert made.nodes["1"].inputs["value"] == "лиса 狐 é"
    assert made.ui["nodes"][0]["widgets_values"][0] == 9


def test_a_webp_with_only_the_ui_form(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Workflow:x"  # a maker whose name looks alike
    exif[0x010E] = f"workflow:{json.dumps(ui_form(), ensure_ascii=False)}"
    assert read(tmp_path, picture("WEBP", exif=exif.tobytes())).nodes["1"].inputs["seed"] == 9


@pytest.mark.parametrize(("container", "codec"), [("mp4", "h264"), ("webm", "libvpx-vp9")])
def test_a_video_as_comfyui_saves_it(tmp_path, container, codec):
    av = pytest.importorskip("av")
    path = tmp_path / f"a.{container}"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as file:
        file.metadata["prompt"] = json.dumps(API)
        stream = file.add_stream(codec, rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(2):
            file.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        file.mux(stream.encode(None))
    assert load_workflow(path, catalog()).nodes["1"].inputs["value"] == "лиса 狐 é"


@pytest.mark.parametrize("name", ["a.webp", "a.mp4"])
def test_others_without_a_workflow_and_damaged_ones_are_named(tmp_path, name):
    pytest.importorskip("av")
    head = picture("WEBP")[:40] if name == "a.webp" else b"\0\0\0\x18ftypisom" + bytes(40)
    with pytest.raises(WorkflowError, match=name.replace(".", r"\.") + ": cannot be read: "):
        read(tmp_path, head, name)
    with pytest.raises(WorkflowError, match=r"b\.webp: this file carries no workflow"):
        read(tmp_path, picture("WEBP"), "b.webp")
