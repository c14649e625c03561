"""``unclip run`` in this process, on fake nodes and the stand-ins for ComfyUI's."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.cli.workflow import local
from unclip.cli.workflow.builtin_nodes import NODE_CLASS_MAPPINGS
from unclip.nodes import host

from ..helpers.workflow import UiBuilder, catalog, node_class


def paint(self, colour, seed):
    """A grey picture, in three steps."""
    with host.stage_progress("Paint", 3) as on_step:
        for step in range(3):
            on_step(type("Step", (), {"index": step, "total": 3})())
    if seed == 13:
        raise ValueError("seed: found 13, which is unlucky")
    if seed == 99:
        raise KeyboardInterrupt
    return (torch.full((1, 4, 4, 3), colour),)


PAINT = node_class(
    {"colour": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0}), "seed": ("INT", {"default": 0})},
    returns=("IMAGE",),
    go=paint,
)


@pytest.fixture(autouse=True)
def _nodes(monkeypatch, tmp_path):
    classes = catalog(Paint=PAINT, **NODE_CLASS_MAPPINGS)
    monkeypatch.setattr(local, "local_catalog", lambda: classes)
    monkeypatch.chdir(tmp_path)


def ui_form():
    ui = UiBuilder()
    ui.node("Paint", 0.5, 7, "randomize", outputs=("IMAGE",), title="The painter")
    ui.node("SaveImage", "grey", inputs={"images": "IMAGE"})
    ui.link(1, 0, 2, "images")
    return ui.json()


def write(path, document):
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def run(*words):
    return CliRunner().invoke(build_app(), ["run", *map(str, words)])


def test_a_ui_workflow_makes_a_picture_that_carries_it(tmp_path):
    result = run(write(tmp_path / "w.json", ui_form()))
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "output" / "grey_00001_.png"
    assert result.stdout.splitlines() == [str(path)]
    with Image.open(path) as picture:
        assert picture.getpixel((0, 0)) == (127, 127, 127)
        assert json.loads(picture.text["workflow"]) == ui_form()
        prompt = json.loads(picture.text["prompt"])
    assert prompt["1"]["inputs"] == {"colour": 0.5, "seed": 7}


def test_the_bar_is_named_by_the_nodes_title(tmp_path):
    result = run(write(tmp_path / "w.json", ui_form()))
    assert "The painter" in result.stderr
    assert "3/3" in result.stderr
    assert run(tmp_path / "w.json", "--quiet").stderr == ""


def test_a_picture_runs_again_and_gives_itself(tmp_path):
    run(write(tmp_path / "w.json", ui_form()), "--set", "Paint.colour=0.25")
    first = tmp_path / "output" / "grey_00001_.png"
    result = run(first, "--output", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    second = tmp_path / "again" / "grey_00001_.png"
    with Image.open(first) as a, Image.open(second) as b:
        assert a.getpixel((0, 0)) == (63, 63, 63)
        assert a.tobytes() == b.tobytes()
        assert a.text == b.text
        stored = json.loads(a.text["workflow"])["nodes"][0]["widgets_values"]
    assert stored == [0.25, 7, "randomize"]


def test_options_reach_the_nodes_after_a_check(tmp_path):
    result = run(write(tmp_path / "w.json", ui_form()), "--set", "The painter.colour=2")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "node 1 (Paint \"The painter\"), input 'colour': found 2.0, expected a number from 0.0 to 1.0."
    )
    assert not (tmp_path / "output").exists()


def test_pictures_are_read_from_the_input_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "photos" / "me.png")
    document = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
    }
    path = write(tmp_path / "w.json", document)
    assert run(path, "--input", tmp_path / "photos").exit_code == 0
    with Image.open(tmp_path / "output" / "copy_00001_.png") as picture:
        assert picture.getpixel((0, 0)) == (10, 20, 30)
        assert list(picture.text) == ["prompt"]
    missing = run(path)
    assert missing.exit_code == 1
    assert "node 1 (LoadImage), input 'image': there is no picture 'me.png'" in missing.stderr


def test_a_failing_node_is_told_in_one_line_and_finished_files_are_listed(tmp_path):
    document = {
        "1": {"class_type": "Paint", "inputs": {"colour": 1, "seed": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "good"}},
        "3": {"class_type": "Paint", "inputs": {"colour": 1, "seed": 13}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "bad"}},
    }
    result = run(write(tmp_path / "w.json", document), "-q")
    assert result.exit_code == 1
    assert result.stderr == "node 3 (Paint): seed: found 13, which is unlucky\n"
    assert result.stdout.splitlines() == [str(tmp_path / "output" / "good_00001_.png")]


def test_ctrl_c_leaves_nothing(tmp_path):
    result = run(write(tmp_path / "w.json", ui_form()), "--set", "1.seed=99", "-q")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"
    assert not (tmp_path / "output").exists()


def test_the_progress_display_is_given_back(tmp_path):
    before = host._progress_factory
    run(write(tmp_path / "w.json", ui_form()), "-q")
    assert host._progress_factory is before


def test_unknown_inputs_are_warned_of(tmp_path):
    document = {
        "1": {"class_type": "Paint", "inputs": {"colour": 1, "seed": 0, "sede": 3}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    result = run(write(tmp_path / "w.json", document), "-q")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: node 1 (Paint) has no input 'sede'; it is ignored. Did you mean \"seed\"?\n"
    )
    assert "unclip-preview-" in result.stdout


def test_without_a_stage_that_reports_progress_nothing_is_shown(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "me.png")
    document = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
    }
    result = run(write(tmp_path / "w.json", document))
    assert result.exit_code == 0
    assert result.stderr == ""


def test_mistakes_that_need_no_nodes_are_told_before_they_are_loaded(tmp_path, monkeypatch):
    def too_soon():
        raise AssertionError("the nodes were loaded")

    monkeypatch.setattr(local, "local_catalog", too_soon)
    assert run(tmp_path / "gone.json").stderr.startswith("WORKFLOW: there is no file")
    bad = run(write(tmp_path / "w.json", ui_form()), "--set", "nonsense")
    assert bad.exit_code == 1
    assert "expected NODE.INPUT=VALUE" in bad.stderr


def test_an_unknown_device(tmp_path):
    result = run(write(tmp_path / "w.json", ui_form()), "--device", "abacus")
    assert result.exit_code == 1
    assert "abacus" in result.stderr
    assert run(tmp_path / "w.json", "--device", "cpu", "--server", "x").exit_code == 2


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_cannot_be_is_told_before_the_run(tmp_path, output):
    write(tmp_path / "file", {})
    result = run(write(tmp_path / "w.json", ui_form()), "--output", tmp_path / output)
    assert result.exit_code == 1
    assert "cannot write into" in result.stderr and "choose another folder" in result.stderr
    assert "The painter" not in result.stderr  # no bar: it has not run


def test_previews_need_no_output_folder(tmp_path):
    write(tmp_path / "output", {})
    ui = ui_form()
    ui["nodes"][1]["type"] = "PreviewImage"
    assert run(write(tmp_path / "w.json", ui)).exit_code == 0
