"""Documents of the repository name files, functions and commands that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from ..helpers.sources import ROOT, import_graph, sources

PAGES = ["README.md", "README.zh.md", "CONTRIBUTING.md", "models/mini/README.md"]
PAGES += [
    f"docs/{name}.md" for name in ("architecture", "evaluation", "measures", "paper", "sampling", "training")
]
LINK = re.compile(r"\[([^\]\[]+)\]\(([^)#\s]+)(?:#[^)]*)?\)")
TENSORS = ("core/networks", "core/diffusion", "core/embeddings")
ROOMS = ("core", "nodes", "cli", "tools", "tests", "web", "locales", "docs", "workflows", "models", ".ci")


def links(page: str) -> list[tuple[str, Path]]:
    """Words and file of every link to a file of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = LINK.findall(text)
    return [(words, (ROOT / page).parent / target) for words, target in found if "://" not in target]


@cache
def names_in(path: Path) -> set[str]:
    """Functions and classes of a module, and what it assigns."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    assert [str(path) for _, path in links(page) if not path.exists()] == []


def test_the_map_names_functions_that_are_there() -> None:
    named = [(words.strip("`"), path) for words, path in links("docs/architecture.md") if "`" in words]
    assert len(named) > 25
    assert [f"{path.name}: {name}" for name, path in named if name not in names_in(path)] == []
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tables = re.findall(r"`([A-Z_]+)` of\s+\[[^\]]+\]\(([^)]+)\)", text)
    assert {name for name, _ in tables} == {"SAMPLERS", "LAYOUTS", "RECIPES"}
    assert [name for name, path in tables if name not in names_in(ROOT / "docs" / path)] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_in_the_text_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    words = {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split()}
    # Words in capitals stand for something: tests/releases/VERSION.
    paths = {word.rstrip("/") for word in words if word.split("/")[0] in ROOMS and "/" in word}
    paths = {path for path in paths if not re.search(r"[A-Z]{4}|UnCLIPName", path)}
    assert len(paths) > 6
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_room_is_on_the_map() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {f"core/{path.parent.name}" for path in (ROOT / "core").glob("*/__init__.py")}
    table = text.split("## The rooms")[1].split("##")[0]
    assert [room for room in rooms if f"`{room}`" not in table] == []
    # Everybody uses it, and it uses nobody.
    assert rooms - set(drawn_arrows()) == {"core/pictures"}


def drawn_arrows() -> dict[str, set[str]]:
    """Room → rooms that an arrow of the diagram leads to; one to a group leads to all rooms in it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    diagram = text.split("```mermaid")[1].split("```")[0]
    labels = dict(re.findall(r"(\w+)\[(core/\w+)\]", diagram))
    assert re.findall(r"\[(core/\w+)\]", diagram.split("subgraph")[1]) == list(TENSORS)
    arrows: dict[str, set[str]] = {room: set() for room in (*labels.values(), "nodes", "cli")}
    for start, end in re.findall(r"^ *(\w+)\S*.* --> (\w+)", diagram, re.MULTILINE):
        if labels.get(start, start) in arrows:
            arrows[labels.get(start, start)] |= set(TENSORS) if end == "tensors" else {labels.get(end, end)}
    return arrows


def below(room: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [room]
    while waiting:
        for each in arrows[waiting.pop()] - found:
            found.add(each)
            waiting.append(each)
    return found


def room_of(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    return "/".join(parts[:2]) if parts[0] == "core" else parts[0]


def test_imports_go_along_the_arrows_of_the_diagram() -> None:
    arrows = drawn_arrows()
    assert len(arrows) > 10
    found = {
        (room_of(start), room_of(end)) for start, ends in import_graph(sources()).items() for end in ends
    }
    between = {(start, end) for start, end in found if start != end and {start, end} <= set(arrows)}
    assert ("nodes", "core/pipelines") in between
    assert sorted(pair for pair in between if pair[1] not in below(pair[0], arrows)) == []
    assert [room for room in arrows if room in below(room, arrows)] == []
    # An arrow that nothing goes along would tell of a connection that is not there.
    direct = {(start, end) for start, ends in arrows.items() for end in ends if end not in TENSORS}
    assert direct - between == set()


def test_clones_are_shallow() -> None:
    """The history holds hundreds of megabytes of old weights."""
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    clones = [line for text in texts.values() for line in text.splitlines() if "git clone" in line]
    assert len(clones) >= 4
    assert [line for line in clones if "git clone --depth 1 " not in line] == []
