"""``unclip probe``: what the command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner
from unclip.cli import probe as probe_command
from unclip.cli.app import build_app
from unclip.core.config import config_from_dict
from unclip.core.evaluation.manipulations.config import ManipulationsConfig
from unclip.core.training.stages import read_toml

from ..helpers.bundle import write_tiny_bundle
from ..helpers.evaluation import write_squares

CONFIG = """
bundle = 'nowhere'
concepts = 4
interpolations = 1
inpainted = 1
fitted = 10
measured = 4
[data]
shards = '{shards}'
[inversion]
pictures = 2
steps = [2, 50]
refinements = 0
[text_diff]
pairs = 2
frames = 2
[decoder]
steps = 2
[inpaint]
steps = 2
"""


@pytest.fixture
def command():
    app = build_app()
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["probe", *map(str, words)])


def test_the_command_writes_results_curves_and_sheets(command, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    config = tmp_path / "quick.toml"
    config.write_text(CONFIG.format(shards=write_squares(tmp_path / "data")), encoding="utf-8")
    out = tmp_path / "out"
    result = command(config, "-o", out, "--bundle", bundle, "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    names = ["result", "inversion-psnr", "text-diff-curve", "pca-error", "variations", "text-diff"]
    files = [out / (f"{name}.png" if name != "result" else "result.json") for name in names]
    assert [line for line in result.stdout.splitlines() if line.startswith(str(tmp_path))] == list(
        map(str, files)
    )
    assert sorted(out.iterdir()) == sorted(files)  # and nothing half-written
    record = json.loads(files[0].read_text(encoding="utf-8"))
    assert (record["bundle"], record["dtype"]) == ("tiny", "float32")
    assert record["settings"]["bundle"] == str(bundle)
    assert [check["met"] for check in record["results"]["checks"]].count(True) >= 3
    assert "unmasked pixels that differ" in result.stdout
    for path in files[1:]:
        with Image.open(path) as picture:
            assert json.loads(picture.text["unclip"])["settings"] == record["settings"]


def test_the_command_asks_first_whether_it_can_write(command, tmp_path):
    (tmp_path / "file").write_text("taken")
    (tmp_path / "quick.toml").write_text(CONFIG.format(shards="nowhere"), encoding="utf-8")
    result = command(tmp_path / "quick.toml", "--output", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot write into" in result.output and "nowhere" not in result.output


def test_the_shipped_config_is_valid():
    shipped = Path(probe_command.__file__).parents[1] / "models" / "mini" / "configs" / "probe.toml"
    config = config_from_dict(ManipulationsConfig, read_toml(shipped), str(shipped))
    assert (config.inversion.pictures, config.text_diff.pairs, config.concepts) == (20, 20, 100)
    assert 50 in config.inversion.steps and config.upsamplers == 2
