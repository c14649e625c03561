"""The scripts beside the package, benchmarks and tools, import what is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from ..helpers.sources import ROOT

SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")])


def missing(text: str) -> list[str]:
    """What a script imports from the package that is not there."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names: list[tuple[str, str | None]] = []
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [(node.module, alias.name) for alias in node.names]
        for module, name in names:
            if module.split(".")[0] == "unclip" and not is_there(module, name):
                found.append(module if name is None else f"{module}.{name}")
    return found


def is_there(module: str, name: str | None) -> bool:
    try:
        loaded = importlib.import_module(module)
        if name is not None and not hasattr(loaded, name):
            importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("unclip"):
            raise
        return False
    return True


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_what_is_there(path: Path) -> None:
    assert missing(path.read_text(encoding="utf-8")) == []


def test_what_is_gone_is_seen() -> None:
    text = "import unclip.gone\nfrom unclip.core.stages import Bundle, Gone\nfrom unclip.nodes import host"
    assert missing(text) == ["unclip.gone", "unclip.core.stages.Gone"]
