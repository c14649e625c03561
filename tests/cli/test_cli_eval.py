"""``unclip eval``: what the command writes, and errors that name what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from unclip.cli import eval as eval_command
from unclip.cli.app import build_app
from unclip.core.config import config_from_dict
from unclip.core.evaluation.quality.config import EvaluationConfig
from unclip.core.formats.native.classifier import save_classifier
from unclip.core.networks.classifier import Classifier, ClassifierConfig
from unclip.core.pipelines.generate import PRIORS
from unclip.core.training.stages import read_toml

from ..helpers.bundle import write_tiny_bundle
from ..helpers.evaluation import squares, write_squares
from ..helpers.kandinsky_files import write_whole_22


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("data"))


@pytest.fixture
def command():
    app = build_app()
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["eval", *map(str, words)])


def write_config(folder, bundle, shards, extra="", table=""):
    path = folder / "quick.toml"
    path.write_text(
        f"bundle = '{bundle}'\nprompts = 12\ncandidates = 6\nreference = 20\nsamples = 4\n"
        f"precision = 'fp32'\n{extra}\n[data]\nshards = '{shards}'\n"
        f"[prior]\nsteps = 2\nguidance_scale = 3\n[decoder]\nsteps = 2\n{table}\n",
        encoding="utf-8",
    )
    return path


def test_the_command_writes_results_and_sheets(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    config = write_config(tmp_path, "nowhere", shards, "splits = ['trained']")
    result = command(config, "--output", tmp_path / "out", "--bundle", bundle, "--device", "cpu")
    assert result.exit_code == 0, result.output
    names = ["result.json", "result.md", "sheet-trained-diffusion.png", "sheet-trained-none.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names  # and nothing half-written
    assert [line for line in result.stdout.splitlines() if line.startswith(str(tmp_path))] == [
        str(tmp_path / "out" / name) for name in names
    ]
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["settings"]["bundle"] == str(bundle)
    assert record["settings"]["prior"]["guidance_scale"] == 3.0
    assert (record["bundle"], record["device"], record["dtype"]) == ("tiny", "cpu", "float32")
    assert record["versions"]["torch"] == torch.__version__
    found = record["results"]["trained"]["priors"]["diffusion"]
    assert found["r_precision_clip"]["of"] == 12
    low, high = (100 * bound for bound in found["background"]["interval95"])
    assert f"({low:.1f}–{high:.1f})" in result.stdout
    with Image.open(tmp_path / "out" / "sheet-trained-none.png") as sheet:
        assert json.loads(sheet.text["unclip"])["settings"] == record["settings"]
        assert sheet.width > 2 * 128


def test_the_judge_can_be_another_clip_model(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    judge = write_tiny_bundle(tmp_path / "judge", upsamplers=0, seed=1, space_id="other/judge") / "clip"

    def measured(extra):
        config = write_config(tmp_path, bundle, shards, f"splits = ['trained']\npriors = ['none']\n{extra}")
        result = command(config, "--output", tmp_path / "out", "--device", "cpu", "--quiet")
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["results"][
            "trained"
        ]

    own, other = measured(""), measured(f"judge = '{judge}'")
    assert own["real"]["cmmd"] != other["real"]["cmmd"]
    assert own["real"]["r_precision_pixels"] == other["real"]["r_precision_pixels"]
    assert own["priors"]["none"]["background"] == other["priors"]["none"]["background"]


def test_a_model_of_a_public_layout_is_measured_and_judges(command, shards, tmp_path):
    model = write_whole_22(tmp_path / "kandinsky")
    config = tmp_path / "quick.toml"

    def measured(precision, extra=""):
        config.write_text(
            f"bundle = '{model}'\nprompts = 2\ncandidates = 2\nreference = 6\nneighbours = 1\nsamples = 1\n"
            f"splits = ['trained']\npriors = ['none']\nprecision = '{precision}'\n{extra}\n"
            f"[data]\nshards = '{shards}'\n[decoder]\nsteps = 1\nguidance_scale = 1\n",
            encoding="utf-8",
        )
        result = command(config, "--output", tmp_path / "out", "--device", "cpu", "--quiet")
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["results"]

    own = measured("fp32")["trained"]["real"]
    assert measured("fp32", f"judge = '{model / 'prior'}'")["trained"]["real"] == own
    assert measured("bf16")["trained"]["real"]["cmmd"] == pytest.approx(own["cmmd"], rel=0.1)


def test_a_classifier_judges_group_by_group(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    names = tuple(sorted({each.concept for each in squares()}))
    network = Classifier(ClassifierConfig(names, image_size=16, blocks=(1, 1, 1, 1)))
    judge = save_classifier(network, tmp_path / "judge.safetensors")
    extra = "splits = []\npriors = ['none']"
    config = write_config(tmp_path, bundle, shards, extra, "[groups]\nprompts = 8\ncandidates = 4")
    words = ("--output", tmp_path / "out", "--device", "cpu", "--quiet")
    result = command(config, *words, "--classifier", judge)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["results"] == {} and record["settings"]["classifier"] == str(judge)
    row = record["groups"]["groups"]["objects"]
    assert (row["plain"], row["priors"]["none"]["r_precision_classifier"]["of"]) == (4, 8)
    text = (tmp_path / "out" / "result.md").read_text(encoding="utf-8")
    assert "| objects | " in text and "| classifier, % |" in text and "all groups, mean" in result.stdout
    assert (tmp_path / "out" / "sheet-group-objects-none.png").exists()
    result = command(config, *words, "--classifier", bundle / "clip.safetensors")
    assert result.exit_code == 1
    assert "holds the stage 'clip', not a classifier" in " ".join(result.output.split())


def test_the_command_draws_curves(command, shards, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    extra = "[guidance_scales]\ndecoder = [1, 1.5]\nprior = [1, 3]\nprompts = 6"
    config = write_config(tmp_path, bundle, shards, "splits = ['trained']\npriors = ['none']", extra)
    result = command(config, "--output", tmp_path / "out", "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "guidance-decoder.png",  # and no curves for the prior, of which there is none
        "result.json",
        "result.md",
        "sheet-trained-none.png",
    ]
    assert str(tmp_path / "out" / "guidance-decoder.png") in result.stdout
    with Image.open(tmp_path / "out" / "guidance-decoder.png") as curves:
        assert json.loads(curves.text["unclip"])["settings"]["guidance_scales"]["decoder"] == [1.0, 1.5]


@pytest.mark.parametrize("module", ["matplotlib", "resvg_py"])
def test_the_command_names_a_package_that_is_missing(command, shards, tmp_path, monkeypatch, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "unclip.core.evaluation.quality.plot", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without(module), *sys.meta_path])
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    extra = "[guidance_scales]\ndecoder = [1]\nprompts = 6"
    result = command(write_config(tmp_path, bundle, shards, "", extra), "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert f"this command needs the package {module}, which is not installed" in result.output
    assert not (tmp_path / "out").exists()


class Without:
    """Finds no module of a package."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, *_):
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


def test_the_command_asks_first_whether_it_can_write(command, shards, tmp_path):
    (tmp_path / "file").write_text("taken")
    result = command(write_config(tmp_path, "nowhere", shards), "--output", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot write into" in result.output and "nowhere" not in result.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "no config file"),
        ("wrong.toml", "bundle = 'x'\nprompt = 3\n[data]\nshards = 'y'", "unknown field prompt"),
        ("nowhere.toml", "bundle = 'not/here'\n[data]\nshards = 'y'", "not/here: does not exist"),
    ],
)
def test_the_command_says_what_is_wrong(command, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    result = command(tmp_path / name, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_judges_are_read_before_the_bundle(command, shards, tmp_path):
    judge = tmp_path / "judge"
    config = write_config(tmp_path, "nowhere", shards, f"judge = '{judge}'")
    result = command(config, "--output", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert str(judge) in "".join(result.output.split()) and "nowhere" not in result.output


def test_the_shipped_config_is_valid():
    shipped = Path(eval_command.__file__).parents[1] / "models" / "mini" / "configs" / "eval.toml"
    config = config_from_dict(EvaluationConfig, read_toml(shipped), str(shipped))
    assert (config.prompts, config.candidates, config.priors) == (200, 100, tuple(PRIORS))
    assert config.guidance_scales and config.decoder.guidance_scale in config.guidance_scales.decoder


def test_the_shipped_config_by_group_measures_all_groups():
    shipped = Path(eval_command.__file__).parents[1] / "models" / "mini" / "configs" / "eval-groups.toml"
    config = config_from_dict(EvaluationConfig, read_toml(shipped), str(shipped))
    assert (config.splits, config.data.groups, config.priors) == ((), (), tuple(PRIORS))
    assert (config.groups.prompts, config.groups.candidates, config.groups.plain) == (200, 100, 0.5)
    assert (config.variety.seeds, config.sharpness.upsamplers, config.binding.pairs) == (32, 2, 50)


def test_a_config_may_ask_for_analytic_variance():
    given = {"bundle": "mini", "data": {"shards": "data"}, "prior": {"variance": "analytic"}}
    config = config_from_dict(EvaluationConfig, given)
    assert config.generate_options("diffusion").prior_options.variance == "analytic"
    with pytest.raises(ValueError, match="variance 'optimal' is not known; choose one of default, analytic"):
        config_from_dict(EvaluationConfig, {**given, "prior": {"variance": "optimal"}})
