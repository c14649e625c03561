"""What runs at GitHub and at a release names files that are there, and a tag that does not fit is refused."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from unclip.core.training.stages import read_toml

from ..helpers.sources import ROOT

WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
PROJECT = read_toml(ROOT / "pyproject.toml")["project"]


def commands(workflow: dict) -> list[str]:
    return [
        step["run"] for job in workflow["jobs"].values() for step in job.get("steps", ()) if "run" in step
    ]


def test_the_workflows_run_what_is_there() -> None:
    assert set(WORKFLOWS) == {"ci", "release"}
    named = {
        word
        for workflow in WORKFLOWS.values()
        for command in commands(workflow)
        for word in command.split()
        if word.startswith(("tests/", "tools/", "workflows/", ".ci/"))
    }
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert WORKFLOWS["release"]["jobs"]["tests"]["uses"] == "./.github/workflows/ci.yml"
    assert {"workflow_call", "pull_request", "push"} == set(WORKFLOWS["ci"][True])  # YAML reads `on` as true


def test_the_oldest_python_that_is_allowed_gets_the_oldest_packages() -> None:
    oldest, newest = WORKFLOWS["ci"]["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert f">={oldest['python']}" == PROJECT["requires-python"] and oldest["options"] == "--oldest"
    assert not newest["options"]


def test_types_are_checked_where_they_are_promised() -> None:
    settings = read_toml(ROOT / "pyproject.toml")["tool"]["mypy"]
    rooms = {"acceleration", "diffusion", "embeddings", "networks", "pipelines"}
    files = {*(f"core/{room}" for room in rooms), *(f"core/{name}.py" for name in ("config", "memory"))}
    assert files | {"core/precision.py", "core/stages.py"} <= set(settings["files"])
    assert [name for name in settings["files"] if not (ROOT / name).exists()] == []
    assert settings["disallow_untyped_defs"] and "ignore_errors" not in settings
    assert re.search(r"^    part mypy mypy ", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)


@pytest.mark.skipif(sys.platform == "win32", reason="a script for bash")
@pytest.mark.parametrize("options", [["--newest"], ["--oldest", "more"]])
def test_the_ci_script_refuses_what_it_does_not_know(options: list[str]) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"usage: .ci/run [--oldest]; found: {' '.join(options)}\n"


def test_large_files_are_kept_out_and_weights_let_in() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    by_id = {hook["id"]: hook for hook in hooks}
    weights = [path.relative_to(ROOT).as_posix() for path in (ROOT / "models").rglob("*.safetensors")]
    assert all(re.search(by_id["large-weights"]["files"], path) for path in weights)
    assert all(re.search(by_id["large-files"]["exclude"], path) for path in weights)
    assert not re.search(by_id["large-files"]["exclude"], "tests/releases/weights.safetensors")


# --- tools/check_release.py ---

CHANGELOG = "# Changelog\n\n## {}\n\n- New.\n- Mended.\n\n## 0.9.0\n\n- Old.\n"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.0.0"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG.format("1.0.0"), encoding="utf-8")
    kept = tmp_path / "tests" / "releases" / "1.0.0"
    kept.mkdir(parents=True)
    (kept / "nodes.json").write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def script() -> dict:
    pytest.importorskip("tomllib", reason="the tool runs on the newest Python")
    return runpy.run_path(str(ROOT / "tools" / "check_release.py"))


def test_a_release_that_is_whole_passes(released: Path, script: dict) -> None:
    assert script["problems"]("v1.0.0", released) == []
    assert script["notes"](released) == "- New.\n- Mended."


def test_what_a_release_lacks_is_named(released: Path, script: dict) -> None:
    (problem,) = script["problems"]("v1.0.1", released)
    assert problem == "the tag is v1.0.1, pyproject.toml has version 1.0.0: expected the tag v1.0.0"
    (released / "CHANGELOG.md").write_text(CHANGELOG.format("Unreleased"), encoding="utf-8")
    (problem,) = script["problems"]("v1.0.0", released)
    assert problem.startswith("CHANGELOG.md begins with 'Unreleased': expected a heading '1.0.0'")
    (released / "CHANGELOG.md").write_text("# Changelog\n", encoding="utf-8")
    (released / "tests" / "releases" / "1.0.0" / "nodes.json").unlink()
    problems = script["problems"]("v1.0.0", released)
    assert problems[0].startswith("CHANGELOG.md begins with 'no heading'")
    assert problems[1].startswith("tests/releases/1.0.0 is not there: run python tools/keep_release.py")
