"""The scaffold of a new node: what it makes passes every test but the one for what is left to write."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.sources import FOLDERS, ROOT

SCRIPT = runpy.run_path(str(ROOT / "tools" / "new_node.py"))
NODE = "UnCLIPRecolour"
COPIED = (*FOLDERS, "locales", "tests", "tools", "web", "workflows")
FILES = ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", ".comfyignore")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository; mini's weights and docs are those of the original."""
    root = tmp_path_factory.mktemp("clone") / "unclip"
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "models", root / "models", copy_function=os.link)
    return root


def start(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(clone.parent), "PYTHONIOENCODING": "utf-8"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    return subprocess.run(
        [sys.executable, *command],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_a_new_node_lacks_nothing_but_its_words(clone: Path) -> None:
    made = start(clone, "tools/new_node.py", NODE, "--group", "embedding")
    assert made.returncode == 0, made.stderr
    named = re.findall(r"^  (\S+)$", made.stdout, re.MULTILINE)
    assert named == [
        "nodes/recolour.py",
        "tests/nodes/test_nodes_recolour.py",
        f"web/docs/{NODE}/en.md",
        f"web/docs/{NODE}/zh.md",
        "locales/zh/nodeDefs.json",
    ]
    tests = [
        "tests/nodes/test_nodes_recolour.py",
        "tests/nodes/test_nodes_declarations.py",
        "tests/nodes/test_frozen_inputs.py",
        "tests/package/test_help_pages.py",
        "tests/package/test_help_pictures.py",
        "tests/package/test_import_rules.py",
        "tests/package/test_locales.py",
        "tests/package/test_nothing_is_left.py",
    ]
    others = f"{NODE} or not UnCLIP"  # what is tested of other nodes cannot have changed
    ran = start(clone, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", others, *tests)
    failed = re.findall(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    assert failed == ["tests/package/test_nothing_is_left.py::test_nothing_is_left_to_fill_in"], ran.stdout
    assert re.search(r"1 failed, \d{2,} passed", ran.stdout)
    # It names every file that a person has to write in.
    assert all((clone / name).read_text(encoding="utf-8").count("TODO") for name in named)
    style = start(clone, "-m", "ruff", "check", "--no-cache", "nodes", "tests/nodes", "tools")
    assert style.returncode == 0, style.stdout
    style = start(clone, "-m", "ruff", "format", "--no-cache", "--check", "nodes", "tests/nodes", "tools")
    assert style.returncode == 0, style.stdout

    again = start(clone, "tools/new_node.py", NODE, "--group", "embedding")
    assert again.returncode == 1
    assert again.stderr == "nodes/recolour.py is there already; choose another name\n"


@pytest.mark.parametrize("group", SCRIPT["GROUPS"])
def test_what_each_group_passes_is_wired_to_nodes_that_are_there(group: str) -> None:
    from unclip.nodes import NODE_CLASS_MAPPINGS, sockets

    passed = SCRIPT["GROUPS"][group]
    assert getattr(sockets, passed.socket) == passed.kind
    before, output = passed.before.split(".")
    after, name = passed.after.split(".")
    source, target = NODE_CLASS_MAPPINGS[before], NODE_CLASS_MAPPINGS[after].INPUT_TYPES()
    assert dict(zip(source.RETURN_NAMES, source.RETURN_TYPES, strict=True))[output] == passed.kind
    assert {**target["required"], **target.get("optional", {})}[name][0] == passed.kind
    categories = {cls.CATEGORY for cls in NODE_CLASS_MAPPINGS.values()}
    assert f"unCLIP/{group}" in categories
    assert {f"unCLIP/{each}" for each in SCRIPT["GROUPS"]} == categories


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Recolour", "found 'Recolour'; expected a name such as UnCLIPRecolour"),
        ("UnCLIP", "found 'UnCLIP'; expected"),
        ("UnCLIPre/../colour", "expected a name such as"),
        ("UnCLIPNoise", "is there already; choose another name"),
        ("UnCLIPBlend", "is there already; choose another name"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        SCRIPT["check"](name, ROOT)


@pytest.mark.parametrize("group", SCRIPT["GROUPS"])
def test_what_is_written_is_in_order(group: str) -> None:
    values = {**vars(SCRIPT["GROUPS"][group]), "node_id": NODE, "group": group, "search": "recolour"}
    for template, path in (("CLASS", "nodes/recolour.py"), ("TEST", "tests/nodes/test_nodes_recolour.py")):
        written = SCRIPT[template].substitute(values, display_name="unCLIP Recolour")
        command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", path, "-"]
        checked = subprocess.run(
            command, cwd=ROOT, input=written, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout


def test_names_are_split_into_words() -> None:
    assert SCRIPT["module_name"]("UnCLIPPCAFitAll") == "pca_fit_all"
    assert SCRIPT["display_name"]("UnCLIPPCAFitAll") == "unCLIP PCA Fit All"
    assert SCRIPT["module_name"]("UnCLIPX2Up") == "x2_up"
