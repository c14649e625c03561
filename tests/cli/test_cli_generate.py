"""``unclip generate`` on a tiny bundle of random weights: files, sizes, seeds, and the picture's workflow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.cli.painting import SAMPLED_STAGES, Settings, Size, painting
from unclip.cli.workflow.local import local_catalog
from unclip.cli.workflow.reading import load_workflow, parse_workflow
from unclip.cli.workflow.validation import validate
from unclip.core.formats.abilities import Abilities
from unclip.core.formats.native.checkpoints import load_stage
from unclip.core.pipelines.generate import stage_settings
from unclip.core.pipelines.options import settings_of
from unclip.nodes import NODE_CLASS_MAPPINGS, host

from ..helpers.bundle import DECODED_SIZE, UPSAMPLED_SIZES, write_tiny_bundle
from ..helpers.lora import random_layers, write_peft

FAST = ["--steps", "2", "--prior-steps", "2", "--upsampler-steps", "2", "--prior-candidates", "1"]
WORKFLOW = Path(host.PACK_FOLDER) / "workflows" / "text_to_image.json"
MINI = Abilities("mini", (64, 256, 1024), reads_captions=True, has_prior=True)
SMALL, MIDDLE, LARGE = DECODED_SIZE, *UPSAMPLED_SIZES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _places(monkeypatch, tmp_path):
    monkeypatch.setenv("UNCLIP_LORAS", "")
    monkeypatch.setenv("UNCLIP_MODELS", "")
    monkeypatch.chdir(tmp_path)


def generate(bundle, *words):
    arguments = ["generate", "a red fox", "--bundle", str(bundle), *FAST, "-q", *map(str, words)]
    return CliRunner().invoke(build_app(), arguments)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_a_picture_that_carries_its_workflow(bundle, tmp_path):
    result = generate(bundle, "-o", "fox.png", "--seed", 5, "--size", MIDDLE)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "fox.png\n"
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    with Image.open("fox.png") as picture:
        assert picture.size == (UPSAMPLED_SIZES[0],) * 2
        prompt, ui = (json.loads(picture.text[key]) for key in ("prompt", "workflow"))
    assert next(node for node in ui["nodes"] if node["id"] == 2)["widgets_values"][0] == "a red fox"
    assert prompt["2"]["inputs"]["text"] == "a red fox"
    assert (
        prompt["3"]["inputs"]["seed"] == prompt["4"]["inputs"]["seed"] == prompt["5"]["inputs"]["seed"] == 5
    )
    assert prompt["4"]["inputs"]["steps"] == 2
    assert prompt["1"]["inputs"]["bundle"] == "tiny"


def test_options_for_what_does_not_run_are_told(bundle):
    small = generate(bundle, "-o", "fox.png", "--size", SMALL)
    assert small.exit_code == 0, small.stderr
    assert small.stderr == "warning: --upsampler-steps has no effect: what it sets does not run here\n"
    assert generate(bundle, "-o", "large.png", "--size", MIDDLE).stderr == ""


def test_a_bundle_asks_for_settings_and_a_person_for_others(bundle, tmp_path):
    asks = write_tiny_bundle(tmp_path / "asks")
    path = asks / "bundle.json"
    said = {"decoder": {"sampler": "unipc", "steps": 9}, "prior": {"candidates": 3}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "defaults": said}))
    assert generate(asks, "-o", "fox.png", "--size", SMALL).exit_code == 0
    with Image.open("fox.png") as picture:
        prompt = json.loads(picture.text["prompt"])
    decode = prompt["4"]["inputs"]
    assert (decode["sampler"], decode["steps"], decode["guidance_scale"]) == ("unipc", 2, 1.5)
    assert (prompt["3"]["inputs"]["candidates"], prompt["3"]["inputs"]["steps"]) == (1, 2)
    result = CliRunner().invoke(
        build_app(),
        ["generate", "a red fox", "--bundle", str(asks), "-q", "-o", "free.png", "--size", str(SMALL)],
    )
    assert result.exit_code == 0, result.stderr
    with Image.open("free.png") as picture:
        prompt = json.loads(picture.text["prompt"])
    assert (prompt["4"]["inputs"]["sampler"], prompt["4"]["inputs"]["steps"]) == ("unipc", 9)
    assert prompt["3"]["inputs"]["candidates"] == 3


@pytest.mark.parametrize(("upsamplers", "off"), [(0, [5, 6]), (1, [6]), (2, [])])
def test_the_picture_opens_laid_out_and_is_the_same_graph(upsamplers, off):
    catalog = local_catalog()
    made = Settings(
        prompt="a red {fox|cat}",
        size=Size(upsamplers),
        seed=2**63 + 9,
        batch_size=3,
        sampling={"UnCLIPDecode": {"steps": 7, "dynamic_threshold": 0.9}, "UnCLIPUpsample": {"seed": 11}},
    )
    graph = painting(made, MINI, catalog)
    ui = json.loads(json.dumps(graph.ui))
    nodes = {node["id"]: node for node in ui["nodes"]}
    assert [key for key, node in nodes.items() if node["mode"] == 4] == off
    assert sum(group["title"].endswith("(off)") for group in ui["groups"]) == len(off)
    assert nodes[3]["widgets_values"][:2] == nodes[4]["widgets_values"][:2] == [made.seed, "fixed"]
    assert "randomize" not in json.dumps(ui) and "MarkdownNote" not in json.dumps(ui)
    # What the page would queue of the layout is what ran.
    queued = parse_workflow(ui, catalog).to_api()
    expected = graph.to_api()
    assert {key: node["inputs"] for key, node in queued.items()} == {
        key: node["inputs"] for key, node in expected.items()
    }
    places = {node["id"]: node["pos"] for node in json.loads(WORKFLOW.read_text(encoding="utf-8"))["nodes"]}
    assert all(node["pos"] == places[key] for key, node in nodes.items())


def test_the_picture_runs_again(bundle, tmp_path, monkeypatch):
    generate(bundle, "-o", "fox.png")
    monkeypatch.setenv("UNCLIP_MODELS", str(bundle.parent))
    result = CliRunner().invoke(build_app(), ["run", "fox.png", "-q"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "output" / "fox_00001_.png")]
    assert np.array_equal(pixels("fox.png"), pixels("output/fox_00001_.png"))


def test_several_pictures_are_numbered_and_equal_single_runs(bundle):
    # In bf16, which "auto" may choose, matrix products round differently for every batch size.
    exact = ("--precision", "fp32")
    result = generate(bundle, "-o", "fox.png", "-n", 3, "--seed", 7, *exact)
    assert result.stdout.split() == ["fox-1.png", "fox-2.png", "fox-3.png"]
    generate(bundle, "-o", "one.png", "--seed", 8, *exact)
    assert np.abs(pixels("fox-2.png") - pixels("one.png")).max() <= 1
    assert np.abs(pixels("fox-1.png") - pixels("one.png")).max() > 1


def test_numbers_sort_by_name(bundle):
    result = generate(bundle, "-o", "fox.png", "-n", 10, "--size", SMALL)
    assert result.stdout.split()[0] == "fox-01.png"


def test_a_bar_for_each_stage(bundle):
    arguments = ["generate", "x", "--bundle", str(bundle), *FAST, "-o", "fox.png", "--size", str(LARGE)]
    result = CliRunner().invoke(build_app(), arguments)
    lines = [line for line in result.stderr.splitlines() if "2/2" in line]
    assert [line.split("━")[0].strip() for line in lines] == [
        "Prior",
        "Decode",
        f"Upsample to {MIDDLE}",
        f"Upsample to {LARGE}",
    ]


def test_folders_are_made_and_files_replaced(bundle, tmp_path):
    assert generate(bundle, "-o", "deep/er/fox.png", "--size", SMALL).exit_code == 0
    before = (tmp_path / "deep/er/fox.png").read_bytes()
    assert generate(bundle, "-o", "deep/er/fox.png", "--size", SMALL, "--seed", 1).exit_code == 0
    assert (tmp_path / "deep/er/fox.png").read_bytes() != before


def test_every_setting_of_the_nodes_has_an_option(bundle):
    """What is named reaches its node; what is not has the node's default."""
    words, expected = [], {"UnCLIPDecode": {}, "UnCLIPDiffusionPrior": {}, "UnCLIPUpsample": {}}
    for node_id, prefix in zip(expected, ("--", "--prior-", "--upsampler-"), strict=True):
        for name, setting in stage_settings(SAMPLED_STAGES[node_id]).items():
            value = setting.choices[1] if setting.choices else type(setting.default)(setting.high)
            # Few steps, small pictures, a prior that answers at once, and the scale of cfg_pp.
            small = {"steps": 2, "candidates": 1, "noise_level": -0.5, "width": 32, "height": 32}
            value = (small | {"guidance_scale": 0.5}).get(name, value)
            words += [prefix + name.replace("_", "-"), value]
            expected[node_id][name] = value
    result = CliRunner().invoke(
        build_app(),
        [
            "generate",
            "x",
            "--bundle",
            str(bundle),
            "-o",
            "fox.png",
            "-q",
            "--size",
            str(MIDDLE),
            *map(str, words),
        ],
    )
    assert result.exit_code == 0, result.stderr
    with Image.open("fox.png") as picture:
        nodes = json.loads(picture.text["prompt"]).values()
    for node in nodes:
        assert node["inputs"].items() >= expected.get(node["class_type"], {}).items()


def test_settings_that_are_not_named_have_the_nodes_defaults(bundle):
    assert (
        CliRunner()
        .invoke(build_app(), ["generate", "x", "--bundle", str(bundle), *FAST, "-o", "fox.png", "-q"])
        .exit_code
        == 0
    )
    with Image.open("fox.png") as picture:
        prompt = json.loads(picture.text["prompt"])
    settings = settings_of(NODE_CLASS_MAPPINGS["UnCLIPDecode"].OPTIONS)
    defaults = {name: each.default for name, each in settings.items() if name != "steps"}
    assert prompt["4"]["inputs"].items() >= defaults.items() and prompt["4"]["inputs"]["steps"] == 2


def test_the_help_tells_the_settings():
    result = CliRunner().invoke(build_app(), ["generate", "--help"], env={"COLUMNS": "200"})
    shown = " ".join(result.output.replace("│", " ").split())
    for prefix, node_id in (("", "UnCLIPDecode"), ("prior-", "UnCLIPDiffusionPrior")):
        for name, setting in stage_settings(SAMPLED_STAGES[node_id]).items():
            assert f"--{prefix}{name.replace('_', '-')} " in shown
            assert setting.help.split(".")[0] in shown
    assert "--strength" not in shown and "--prior-strength" not in shown and "autoguidance" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", 0.5], "No such option --strength"),
        (["--prior-strength", 0.5], "No such option --prior-strength"),
        (["--guidance", "autoguidance"], "found 'autoguidance', expected one of cfg, cfg_pp, apg, pag."),
        (["--sampler", "eular"], "--sampler: found 'eular', expected one of ddpm, ddim"),
    ],
)
def test_what_needs_an_input_that_there_is_none_of_is_not_offered(bundle, words, message):
    """The nodes have such inputs: a picture or an embedding to begin from, a weaker decoder."""
    result = generate(bundle, "-o", "fox.png", *words)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    if message.startswith("No such"):  # as versions of click write it
        said = re.sub("option:? '?(--[a-z-]+)'?", r"option \1", said)
    assert message in said
    decode, prior = (settings_of(NODE_CLASS_MAPPINGS[each].OPTIONS) for each in list(SAMPLED_STAGES)[1::-1])
    assert "strength" in decode and "strength" in prior and "autoguidance" in decode["guidance"].choices


def test_a_failed_run_leaves_the_old_picture_and_no_rest(bundle, tmp_path):
    (tmp_path / "fox.png").write_bytes(b"old")
    result = generate(bundle, "-o", "fox.png", "--spacing", "optimal")
    assert result.exit_code == 1
    (said,) = result.stderr.splitlines()
    assert said.startswith("--spacing: optimal needs timesteps that were found for this network")
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    assert (tmp_path / "fox.png").read_bytes() == b"old"


def test_ctrl_c_leaves_no_rest(bundle, tmp_path, monkeypatch):
    def pressed(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("unclip.cli.workflow.builtin_nodes.SaveImage.save_images", pressed)
    result = generate(bundle, "-o", "fox.png")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "fox.jpg"], "expected a name that ends in .png"),
        (["-o", "."], "is a folder; name a file"),
        (["-o", "fox.png", "--size", "51.2"], "expected a side in pixels"),
        (["-o", "fox.png", "--seed", "-1"], "--seed"),
        (["-o", "fox.png", "--prior-guidance-scale", "31"], "--prior-guidance-scale"),
        ([], "Missing option '--output'"),
    ],
)
def test_usage_errors(bundle, words, message):
    result = generate(bundle, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_bundles_that_are_none(tmp_path, bundle):
    result = generate("minii", "-o", "fox.png")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "--bundle minii: there is no such bundle or folder; the bundles here are mini"
    )
    (tmp_path / "empty").mkdir()
    assert "this folder has no bundle.json" in generate("empty", "-o", "fox.png").stderr


def test_untitled_nodes_have_comfyuis_display_names():
    catalog = local_catalog()
    assert catalog.spec("SaveImage").title == "Save Image"
    assert catalog.spec("UnCLIPDecode").title == "unCLIP Decode"


def test_every_widget_is_written_out():
    catalog = local_catalog()
    graph = painting(Settings("x", size=Size(2)), MINI, catalog)
    for node in graph.nodes.values():
        assert {widget.name for widget in catalog.spec(node.class_type).widgets} <= set(node.inputs)
    assert len(validate(graph, catalog).order) == 7


@pytest.mark.skipif(not WORKFLOW.is_file(), reason="the workflow is not there")
def test_the_graph_is_that_of_the_workflow_file():
    """Same classes, wired alike, from SaveImage back to the loader."""
    catalog = local_catalog()
    shipped = load_workflow(WORKFLOW, catalog)
    upsamplers = sum(node.class_type == "UnCLIPUpsample" for node in shipped.nodes.values())

    def shape(graph, node_id, slot=None):
        node = graph.nodes[node_id]
        links = {k: v for k, v in node.inputs.items() if isinstance(v, list)}
        return node.class_type, slot, {k: shape(graph, *v) for k, v in links.items()}

    def outputs(graph):
        return [i for i, node in graph.nodes.items() if catalog.spec(node.class_type).output_node]

    made = painting(Settings("x", size=Size(upsamplers)), MINI, catalog)
    assert shape(made, "7") in [shape(shipped, node_id) for node_id in outputs(shipped)]


def test_more_pictures_than_a_node_makes_are_refused_at_once(bundle):
    result = generate(bundle, "-n", 10**30)
    assert result.exit_code == 2
    assert "256" in result.stderr


def test_loras_change_the_picture_by_their_strength(bundle, tmp_path):
    stage = load_stage(bundle / "decoder.safetensors")
    folder = tmp_path / "my styles"
    folder.mkdir()
    for name in ("ink", "oil"):
        write_peft(random_layers(stage.network, ("conv_out",)), folder / f"{name}.safetensors")
    plain, weak, off, both = (tmp_path / f"{name}.png" for name in ("plain", "weak", "off", "both"))
    ink, oil = (str(folder / f"{name}.safetensors") for name in ("ink", "oil"))
    for target, chosen in (
        (plain, []),
        (weak, [f"{ink}:0.02"]),
        (off, [f"{ink}:0"]),
        (both, [ink, f"{oil}:-1"]),
    ):
        words = [word for each in chosen for word in ("--lora", each)]
        result = generate(bundle, "-o", target, "--size", SMALL, *words)
        assert result.exit_code == 0, result.stderr
    assert (pixels(off) == pixels(plain)).all()
    assert (pixels(weak) != pixels(plain)).any()
    assert (pixels(both) == pixels(plain)).all()  # the same factors, once added and once taken off
    with Image.open(weak) as picture:
        prompt = json.loads(picture.text["prompt"])
    (lora,) = (node for node in prompt.values() if node["class_type"] == "UnCLIPLoadLoRA")
    assert lora["inputs"]["lora"] == "ink.safetensors" and lora["inputs"]["strength"] == 0.02


@pytest.mark.parametrize(
    ("word", "message"),
    [("gone.safetensors", "there is no file gone"), ("x.safetensors:much", "expected a number")],
)
def test_loras_that_are_none(bundle, word, message):
    result = generate(bundle, "-o", "fox.png", "--lora", word)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--precision", "fp8"], 1, "--precision: found 'fp8', expected one of auto, fp32, fp16, bf16"),
        (["--seed", 2**64], 2, "'--seed'"),
    ],
)
def test_what_is_out_of_range_is_named_by_its_flag(bundle, words, code, message):
    result = generate(bundle, "-o", "fox.png", *words)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
