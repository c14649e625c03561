"""The shipped workflows of published models: files lie as their notes say, and the graphs run."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from unclip.cli.workflow.builtin_nodes import Folders
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import load_workflow
from unclip.core.formats.layouts import glide as glide_format
from unclip.nodes import catalogue
from unclip.nodes.bridge import TARGETS
from unclip.nodes.loaders import NOTHING

from ..helpers import glide as glide
from ..helpers import kandinsky_workflows as kandinsky
from ..helpers import karlo as karlo
from ..helpers import laion as laion
from ..helpers.nodes import run

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CARDS = runpy.run_path(str(ROOT / "tools" / "make_workflow_cards.py"))
KARLO, VARIATIONS, KANDINSKY = "karlo-v1-alpha", "karlo-v1-alpha-image-variations", "kandinsky-2-2-prior"
NEEDED = {
    **{name: [f"unclip/{each}" for each in kandinsky.models_of(name)] for name in kandinsky.DECODERS},
    "karlo_text_to_image": [f"unclip/{KARLO}"],
    "karlo_image_variation": [f"unclip/{VARIATIONS}"],
    "karlo_prior_to_sd21_unclip": [f"unclip/{KARLO}", "checkpoints/sd21-unclip-l.ckpt"],
    "kandinsky22_prior_to_sdxl": [f"unclip/{KANDINSKY}", "checkpoints/sd_xl_base_1.0.safetensors"],
    "glide_vs_unclip": ["unclip/glide/base.pt", "unclip/glide/upsample.pt", f"unclip/{KARLO}"],
    "glide_inpaint": ["unclip/glide/base_inpaint.pt", "unclip/glide/upsample_inpaint.pt"],
    "laion_text_to_image": [
        f"unclip/laion/{file}" for file in (laion.CLIP, laion.PRIOR, laion.DECODER, laion.UPSAMPLER)
    ],
}
# Where each comes from, and its licence.
SOURCES = {
    **{
        folder: (f"huggingface.co/kandinsky-community/{folder})", "Apache-2.0")
        for name in kandinsky.DECODERS
        for folder in kandinsky.models_of(name)
    },
    "pops": ("huggingface.co/pOpsPaper/operators)", "no licence is stated"),
    KARLO: ("huggingface.co/kakaobrain/karlo-v1-alpha)", "CreativeML OpenRAIL-M"),
    VARIATIONS: ("huggingface.co/kakaobrain/karlo-v1-alpha-image-variations)", "CreativeML OpenRAIL-M"),
    "glide": ("openaipublic.blob.core.windows.net/diffusion/dec-2021/", "MIT"),
    "laion": ("huggingface.co/laion/DALLE2-PyTorch)", "MIT"),
    "sd21-unclip-l.ckpt": (
        "huggingface.co/stabilityai/stable-diffusion-2-1-unclip)",
        "CreativeML Open RAIL++-M",
    ),
    "sd_xl_base_1.0.safetensors": (
        "huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/",
        "CreativeML Open RAIL++-M",
    ),
}
MODEL_HOSTS = {"huggingface.co", "civitai.com"}  # ComfyUI's missing-model dialog offers downloads from these
MODEL_FOLDERS = {"unclip", "checkpoints"}
CLOSE = 2.0  # mean difference of 8-bit pixels: less is JPEG, more another card
STEPS, PICTURE = 2, (48, 40)  # width, height


def read(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(name: str, kind: str) -> list[dict]:
    return [node for node in read(name)["nodes"] if node["type"] == kind]


def note_of(name: str) -> str:
    (note,) = nodes_of(name, "MarkdownNote")
    return note["widgets_values"][0].replace("**", "")


# ---------------------------------------------------------------------------------------------- what they say


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_needs_is_known(path):
    assert CARDS["needed_models"](read(path.stem)) == NEEDED.get(path.stem, [])


@pytest.mark.parametrize("name", NEEDED)
def test_the_note_says_where_each_file_comes_from_and_goes(name):
    note = note_of(name)
    for path in NEEDED[name]:
        assert re.search(rf"^- ComfyUI/models/{re.escape(path)}(/|$)", note, re.MULTILINE), path
        link, licence = SOURCES[path.split("/")[1]]
        assert f"https://{link}" in note and licence in note
    assert re.search(r"^Memory: about \d+ GB|\. Memory: about \d+ GB", note, re.MULTILINE)


@pytest.mark.parametrize(
    "name", [name for name, needed in NEEDED.items() if any("glide/" in n for n in needed)]
)
def test_the_note_links_each_file_of_glide(name):
    links = dict(re.findall(r"\[([\w.]+)\]\((https://openaipublic\S+)\)", note_of(name)))
    files = [path.rpartition("/")[2] for path in NEEDED[name] if "/glide/" in path]
    assert list(links) == files
    assert all(link.rpartition("/")[2] == file for file, link in links.items())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_offered_downloads_are_such_as_comfyui_accepts(path):
    for node in read(path.stem)["nodes"]:
        for model in node["properties"].get("models", []):
            url = urlsplit(model["url"])
            assert model["name"] in node["widgets_values"]
            assert model["directory"] in MODEL_FOLDERS
            assert url.scheme == "https" and url.hostname in MODEL_HOSTS
            assert url.path.endswith((".safetensors", ".sft"))
            assert url.path.rpartition("/")[2] == model["name"], "a browser saves it under this name"
            assert re.fullmatch(r"[0-9a-f]{64}", model["hash"]) and model["hash_type"] == "SHA256"


def test_sdxl_can_be_downloaded_from_the_dialog():
    (loader,) = nodes_of("kandinsky22_prior_to_sdxl", "CheckpointLoaderSimple")
    assert [model["directory"] for model in loader["properties"]["models"]] == ["checkpoints"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_has_a_thumbnail(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256
        assert path.stem not in NEEDED or picture.size == (512, 512)


@pytest.mark.parametrize("name", NEEDED)
def test_a_card_shows_its_workflow(name):
    document = read(name)
    drawn = np.asarray(CARDS["draw_card"](document), dtype=float)
    assert drawn.shape == (512, 512, 3)
    assert drawn[:56, :210].std(axis=(0, 1)).max() < 1, "the template browser lays its badge over this corner"
    titles = [title for title, _, _ in CARDS["stages"](document)]
    assert titles == sorted(titles), "numbered in reading order"
    shipped = np.asarray(Image.open(ROOT / "workflows" / f"{name}.jpg"), dtype=float)
    assert np.abs(drawn - shipped).mean() < CLOSE, "run: python tools/make_workflow_cards.py"
    document["groups"].pop()
    assert np.abs(np.asarray(CARDS["draw_card"](document), dtype=float) - shipped).mean() > CLOSE


@pytest.mark.parametrize("name", ["karlo_prior_to_sd21_unclip", "kandinsky22_prior_to_sdxl"])
def test_one_caption_goes_to_both_models(name):
    (caption,) = nodes_of(name, "PrimitiveStringMultiline")
    document = read(name)
    fed = {link[3] for link in document["links"] if link[1] == caption["id"]}
    kinds = [node["type"] for node in document["nodes"] if node["id"] in fed]
    assert sorted(kinds) == ["CLIPTextEncode", "UnCLIPTextEncode"]


@pytest.mark.parametrize(
    ("name", "target", "dim"),
    [
        ("karlo_prior_to_sd21_unclip", "sd21-unclip-l", 768),
        ("kandinsky22_prior_to_sdxl", "sdxl-revision", 1280),
    ],
)
def test_the_bridge_checks_the_space_that_the_native_model_reads(name, target, dim):
    (bridge,) = nodes_of(name, "UnCLIPToClipVision")
    assert bridge["widgets_values"] == [target]
    assert TARGETS[target] == dim
    (conditioning,) = nodes_of(name, "unCLIPConditioning")
    assert conditioning["widgets_values"] == [1.0, 0.0], "ComfyUI has no CLIP statistics for augmentation"


# -------------------------------------------------------------------------------------------- where files lie


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """models/unclip as the notes describe it, with small networks of random weights."""
    folder = tmp_path_factory.mktemp("unclip")
    whole = karlo.save_as_published(karlo.tiny_pipeline(), folder / KARLO)
    shutil.copytree(whole, folder / VARIATIONS, ignore=shutil.ignore_patterns("prior*"))
    karlo.tiny_image_encoder().save_pretrained(folder / VARIATIONS / "image_encoder")
    kandinsky.write_models(folder)
    (folder / "glide").mkdir()
    for kind in glide.KINDS:
        levels = 1 if kind.startswith("base") else 3  # 8 pixels, then 32
        torch.save(glide.glide_state(kind, levels=levels), folder / "glide" / f"{kind.replace('-', '_')}.pt")
    glide.write_merges(folder / "glide")
    (folder / "glide" / "vocab.bpe").rename(folder / "glide" / "merges.txt")
    return folder


@pytest.fixture
def in_place(models, monkeypatch):
    """The files are where the loaders look for them; GLIDE's upsamplers take three steps instead of 27."""
    monkeypatch.setenv("UNCLIP_MODELS", str(models))
    monkeypatch.setattr(glide_format, "UPSAMPLER_TIMESTEPS", (0, 500, 997))


def loaders(name: str) -> list[tuple[str, str]]:
    """(stage, or "bundle"; value) of each of our loaders, and of a second bundle in one."""
    return [
        (node["type"].removeprefix("UnCLIPLoad").lower(), value)
        for node in read(name)["nodes"]
        if node["type"].startswith("UnCLIPLoad")
        for value in (node["widgets_values"][0], *node["widgets_values"][2:])
        if value != NOTHING
    ]


def listed(stage: str) -> list[str]:
    return catalogue.list_bundles() if stage == "bundle" else catalogue.list_stage_files(stage)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize(
    "name", [name for name in NEEDED if not name.startswith("laion")]
)  # has tests of its own
def test_the_loaders_list_what_the_workflow_names(name):
    assert loaders(name)
    for stage, value in loaders(name):
        assert value in listed(stage)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("karlo_prior_to_sd21_unclip", ["decoder*", "super_res*", "text_proj"]),
        ("kandinsky22_prior_to_sdxl", ["image_encoder"]),
    ],
)
def test_the_part_of_a_folder_that_the_note_asks_for_is_enough(models, tmp_path, monkeypatch, name, left_out):
    (folder,) = {value.split("/")[0] for _, value in loaders(name)}
    shutil.copytree(models / folder, tmp_path / folder, ignore=shutil.ignore_patterns(*left_out))
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path))
    parts = {}
    for stage, value in loaders(name):
        assert value in listed(stage)
        if stage == "bundle":
            parts |= zip(
                ("clip", "prior"), run("UnCLIPLoadBundle", bundle=value, precision="fp32"), strict=False
            )
        else:
            kind = {"clip": "UnCLIPLoadCLIP", "prior": "UnCLIPLoadPrior"}[stage]
            (parts[stage],) = run(kind, file=value, precision="fp32")
    (text,) = run("UnCLIPTextEncode", clip=parts["clip"], text="a red fox")
    embedding, _ = run("UnCLIPDiffusionPrior", prior=parts["prior"], text=text, steps=STEPS)
    ((output,),) = run("UnCLIPToClipVision", embedding=embedding, target="any")
    assert output.image_embeds.shape == (1, karlo.DIM) and output.image_embeds.isfinite().all()


# --------------------------------------------------------------------------------------------- what they make


def made_by(name: str, folder: Path) -> list[np.ndarray]:
    """The pictures that a workflow saves when it runs without ComfyUI, with few steps, in float32."""
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURE[1], PICTURE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "example.png")
    catalog = local_catalog()
    graph = load_workflow(ROOT / "workflows" / f"{name}.json", catalog)
    for node_id, node in graph.nodes.items():
        few = {"steps": STEPS, "precision": "fp32"}
        graph = graph.with_inputs(node_id, **{key: few[key] for key in few if key in node.inputs})
    folders = Folders(folder, folder / "output")
    run_here(graph, catalog, folders, quiet=True)
    return [np.asarray(Image.open(path).convert("RGB")) for path in folders.written]


@pytest.mark.usefixtures("in_place")
def test_karlo_paints_a_caption(tmp_path):
    (picture,) = made_by("karlo_text_to_image", tmp_path)
    assert picture.shape == (karlo.UPSAMPLED, karlo.UPSAMPLED, 3) and picture.std() > 5


@pytest.mark.usefixtures("in_place")
def test_karlo_varies_a_picture(tmp_path):
    pictures = made_by("karlo_image_variation", tmp_path)
    assert [picture.shape for picture in pictures] == [(karlo.UPSAMPLED, karlo.UPSAMPLED, 3)] * 4
    assert np.abs(pictures[0].astype(float) - pictures[1]).mean() > 2, "each has its own seed"


@pytest.mark.usefixtures("in_place")
def test_glide_and_unclip_stand_side_by_side(tmp_path):
    (sheet,) = made_by("glide_vs_unclip", tmp_path)
    height, width, _ = sheet.shape
    assert width > 4 * 256 and 2 * 256 < height < 3 * 256, "four pictures of each, in two rows"


@pytest.mark.usefixtures("in_place")
def test_glide_paints_the_mask_and_keeps_the_rest(tmp_path):
    (picture,) = made_by("glide_inpaint", tmp_path)
    before = np.asarray(Image.open(tmp_path / "example.png"))
    assert picture.shape == before.shape
    same = (picture == before).all(axis=-1)
    assert same[0].all() and same[:, 0].all(), "outside of the ellipse"
    assert not same[20:24, 20:28].any(), "inside of it"
