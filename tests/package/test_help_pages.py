"""Help pages: one in each language for every node, saying what the code says."""

from __future__ import annotations

import ast
import json
import re
from functools import cache

import pytest
from PIL import Image

from ..helpers.sources import ROOT, sources
from ..helpers.translated import LANGUAGES, NODE_IDS, declared_inputs, declared_outputs, is_chinese

DOCS = ROOT / "web" / "docs"
HEADINGS = {
    "en": ["When to use it", "Inputs", "Outputs", "Tips and typical mistakes", "In the paper"],
    "zh": ["何时使用", "输入", "输出", "提示与常见错误", "论文出处"],
}
INPUTS, OUTPUTS, PAPER = 1, 2, 4
PICTURE = "picture.webp"
WIDTH, LARGEST, LARGEST_OF_ALL = 640, 40_000, 1_200_000  # pixels, bytes
FILES = ("file", "bundle", "folder")  # choices that are what is found on a disk
NODES_AND_LANGUAGES = [
    pytest.param(node_id, language, id=f"{node_id}-{language}")
    for node_id in NODE_IDS
    for language in LANGUAGES
]


def page(node_id: str, language: str) -> str:
    return (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")


def section(node_id: str, language: str, number: int) -> str:
    parts = re.split(r"^## .+$", page(node_id, language), flags=re.MULTILINE)
    return parts[number + 1]


def rows(node_id: str, language: str, number: int) -> dict[str, list[str]]:
    """Cells of the table in a section, by the name in backticks in the first one."""
    lines = [line for line in section(node_id, language, number).splitlines() if line.startswith("|")]
    found: dict[str, list[str]] = {}
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        (name,) = re.findall(r"`([^`]+)`", cells[0])
        assert name not in found, f"{name} twice"
        found[name] = cells
    return found


@cache
def chinese_names(node_id: str) -> dict[str, str]:
    definitions = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    return {name: each["name"] for name, each in definitions[node_id]["inputs"].items()}


def test_there_are_pages_of_registered_nodes_only() -> None:
    assert {path.name for path in DOCS.iterdir()} == set(NODE_IDS)
    files = {path.name for path in DOCS.glob("*/*")}
    assert files == {*(f"{language}.md" for language in LANGUAGES), PICTURE}


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_a_page_shows_its_picture(node_id: str, language: str) -> None:
    ((words, path),) = re.findall(r"!\[(.*?)\]\((.*?)\)", page(node_id, language))
    # ComfyUI looks for a relative path in docs/, whatever the folder of the page and the name of the pack's.
    assert path == f"{node_id}/{PICTURE}"
    assert (DOCS / path).is_file(), f"run: python tools/make_help_pictures.py {node_id}"
    assert (DOCS / path).stat().st_size <= LARGEST
    with Image.open(DOCS / path) as picture:
        assert (picture.format, picture.width) == ("WEBP", WIDTH)
    assert len(words) >= 10 and is_chinese(words) == (language == "zh")
    assert not set('"<>&`') & set(words)  # older pages write them into HTML as they are


def test_the_pictures_do_not_weigh_the_pack_down() -> None:
    assert sum(path.stat().st_size for path in DOCS.glob(f"*/{PICTURE}")) <= LARGEST_OF_ALL


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_a_page_has_its_sections(node_id: str, language: str) -> None:
    text = page(node_id, language)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS[language]
    assert not text.startswith("#")  # ComfyUI writes the name of the node above the page
    parts = re.split(r"^## .+$", text, flags=re.MULTILINE)
    assert all(len(part.strip()) >= 5 for part in parts)
    assert "arxiv.org/abs/2204.06125" in section(node_id, language, PAPER)
    assert is_chinese(text) == (language == "zh")


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_the_inputs_are_those_of_the_code(node_id: str, language: str) -> None:
    found, declared = rows(node_id, language, INPUTS), declared_inputs(node_id)
    assert set(found) == set(declared)
    for name, (kind, options) in declared.items():
        label, allowed, default, meaning = found[name]
        assert len(meaning) > 5, name
        if language == "zh":
            assert chinese_names(node_id)[name] in label, name
        if name in FILES:
            continue
        if isinstance(kind, list):
            assert re.findall(r"`([^`]+)`", allowed) == kind, name
            assert default == f"`{options['default']}`", name
        elif kind in ("INT", "FLOAT"):
            limits = [float(options["min"]), float(options["max"])]
            assert [float(number) for number in allowed.split(" – ")] == limits, name
            assert float(default) == options["default"], name
        elif kind == "BOOLEAN":
            assert default == f"`{str(options['default']).lower()}`", name
        elif kind == "STRING" and not options.get("forceInput"):
            assert not options["default"] or default == f"`{options['default']}`", name
        else:
            assert allowed == f"`{kind}`", name


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_the_outputs_are_those_of_the_code(node_id: str, language: str) -> None:
    found = rows(node_id, language, OUTPUTS) if declared_outputs(node_id) else {}
    assert {name: cells[1] for name, cells in found.items()} == {
        name: f"`{kind}`" for name, kind in declared_outputs(node_id).items()
    }


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_pages_name_nodes_as_they_are_shown(node_id: str, language: str) -> None:
    """Names of nodes in a page are those that a person finds in ComfyUI, in the language of the page."""
    definitions = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    shown = {entry["display_name"] for entry in definitions.values()}
    quoted = re.findall(r"“([^”]*unCLIP[^”]*)”", page(node_id, language))
    assert set(quoted) <= shown


@cache
def messages() -> list[set[str]]:
    """Words of every text in the code, those of one f-string together."""
    found = []
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
                found.append(words(" ".join(text for text in texts if isinstance(text, str))))
    return found


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z][a-z_]+", text.lower()))


def is_in_the_code(message: str) -> bool:
    """Whether a text of the code has the words of a message, but for a few that were filled in."""
    quoted = words(message)
    return any(len(quoted & known) >= 0.7 * len(quoted) for known in messages())


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_errors_are_quoted_as_the_code_has_them(node_id: str, language: str) -> None:
    quotes = re.findall(r"`([^`]+)`", page(node_id, language))
    # Captions, which are examples, begin with an article; what has few words is a name or a value.
    errors = [quote for quote in quotes if len(words(quote)) > 4 and not quote.startswith("a ")]
    assert [error for error in errors if not is_in_the_code(error)] == []


def test_an_error_that_is_not_in_the_code_is_noticed() -> None:
    assert is_in_the_code("mask: is empty, so there is nothing to repaint")
    assert not is_in_the_code("mask: has no white pixels, so the picture stays the same")
