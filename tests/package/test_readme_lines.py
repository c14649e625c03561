"""The commands and the Python of the README do what they say: each line is run."""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import unclip
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.stages import Defaults
from unclip.nodes.catalogue import EMBEDDED_BUNDLE

from ..helpers import published_models as published
from ..helpers.sources import ROOT

# What is not run: it goes to the network, to a server, or takes hours.
ELSEWHERE = re.compile(r"^unclip (download|train|data|eval|probe|batch|embed)\b|--server")
FAST = {
    "generate": shlex.split("--steps 1 --prior-steps 1 --prior-candidates 1 --upsampler-steps 1"),
    "steps": shlex.split("--points 8 --pictures 1 --prior none --sampler ddim"),
}
QUICK = Defaults(
    {"prior": {"steps": 2, "candidates": 1}, "decoder": {"steps": 2}, "upsampler": {"steps": 1}}, "a test"
)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of every command line."""
    lines = "\n".join(blocks(page, "sh")).replace("&&", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def code(page: str) -> list[str]:
    """Lines of Python without comments."""
    lines = "".join(blocks(page, "python")).splitlines()
    return [bare for line in lines if (bare := line.partition("#")[0].rstrip())]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to work in with what the lines name: workflows, mini, and small Kandinsky and Karlo."""
    if not (ROOT / "models" / EMBEDDED_BUNDLE / "bundle.json").is_file():
        pytest.skip("mini is not in this copy")
    folder = tmp_path_factory.mktemp("readme")
    models = folder / "ComfyUI" / "models" / "unclip"
    published.write_kandinsky(models / "kandinsky22")
    published.write_karlo(folder / "karlo-v1-alpha")
    (folder / "captions.txt").write_text("a flat panda\n")
    (folder / "workflows").symlink_to(ROOT / "workflows")
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def test_the_command_lines_run(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("UNCLIP_MODELS", str(place / "ComfyUI" / "models" / "unclip"))
    run = [words for words in commands("README.md") if words[0] == "unclip"]
    run = [words[1:] for words in run if not ELSEWHERE.search(shlex.join(words))]
    assert {words[0] for words in run} >= {"generate", "run", "inspect", "convert"}
    assert sum("kandinsky22" in words for words in run) >= 2
    for words in run:
        result = CliRunner().invoke(build_app(), [*words, *FAST.get(words[0], ())])
        assert result.exit_code == 0, (words, result.stderr)
        if words[0] == "generate":
            files = result.stdout.split()
            assert len(files) == (int(words[words.index("-n") + 1]) if "-n" in words else 1)
            assert all((place / file).is_file() for file in files)


def test_the_python_runs_and_gives_the_shapes_that_it_says(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    load = unclip.load_bundle
    monkeypatch.setattr(unclip, "load_bundle", lambda *given: replace(load(*given), defaults=QUICK))
    text = "".join(blocks("README.md", "python"))
    assert '"steps": 50' in text
    (place / "readme.py").write_text(text.replace('"steps": 50', '"steps": 2'), encoding="utf-8")
    names = runpy.run_path(str(place / "readme.py"))
    said = re.findall(r"^(\w+) = .*# \[([\d, ]+)\]", text, re.MULTILINE)
    assert len(said) >= 4
    for name, shape in said:
        assert isinstance(names[name], torch.Tensor)
        assert list(names[name].shape) == [int(side) for side in shape.split(",")]
    assert tuple(names["cat"].shape) == (1, 3, 512, 768)
    assert (place / "panda.png").is_file()


def test_the_chinese_page_has_the_same_lines() -> None:
    own = [words for words in commands("README.zh.md") if words[0] == "unclip" and "文件" not in words]
    assert len(own) >= 8 and [words for words in own if words not in commands("README.md")] == []
    assert code("README.zh.md") == [line for line in code("README.md") if line in code("README.zh.md")]
    assert len(code("README.zh.md")) >= 12
