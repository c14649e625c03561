"""Help pages: one in each language for every node, saying what the code says."""

from __future__ import annotations

import ast
import json
import re
import runpy
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
WIDTH, LARGEST, LARGEST_OF_ALL = 640, 40_000, 1_250_000  # pixels, bytes
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


def entries(node_id: str, language: str, number: int) -> dict[str, tuple[str, str, str]]:
    """Of the list in a section, by the input's or output's own name: label, what it takes, what it does."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in section(node_id, language, number).splitlines():
        if not line.startswith("- "):
            continue
        label, about, meaning = re.fullmatch(r"- \*\*(.+?)\*\* ?[(（](.+?)[)）][:：] ?(.+)", line).groups()
        name = (re.findall(r"`([^`]+)`", label) or [label])[0]
        assert name not in found, f"{name} twice"
        found[name] = label, about, meaning
    return found


@cache
def chinese_names(node_id: str) -> dict[str, str]:
    definitions = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    return {name: each["name"] for name, each in definitions[node_id]["inputs"].items()}


def test_there_are_pages_of_registered_nodes_only() -> None:
    assert {path.name for path in DOCS.iterdir()} == {*NODE_IDS, *(f"{node_id}.md" for node_id in NODE_IDS)}
    files = {path.name for path in DOCS.glob("*/*") if path.suffix != ".webp"}
    assert files == {f"{language}.md" for language in LANGUAGES}


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_a_page_shows_its_pictures(node_id: str, language: str) -> None:
    shown = re.findall(r"!\[(.*?)\]\((.*?)\)", page(node_id, language))
    # ComfyUI looks for a relative path in docs/, whatever the folder of the page and the name of the pack's:
    # the same path serves the page without a language, which lies in docs/ itself.
    assert shown[0][1] == f"{node_id}/{PICTURE}"
    assert (DOCS / node_id / PICTURE).is_file(), f"run: python tools/make_help_pictures.py {node_id}"
    made = [path.relative_to(DOCS).as_posix() for path in (DOCS / node_id).glob("*.webp")]
    assert sorted(path for _, path in shown) == sorted(made)
    for words, path in shown:
        assert (DOCS / path).stat().st_size <= LARGEST
        with Image.open(DOCS / path) as picture:
            assert (picture.format, picture.width) == ("WEBP", WIDTH)
        assert len(words) >= 10 and is_chinese(words) == (language == "zh")
        assert not set('"<>&`') & set(words)  # older pages write them into HTML as they are


def test_the_pictures_do_not_weigh_the_pack_down() -> None:
    assert sum(path.stat().st_size for path in DOCS.glob("*/*.webp")) <= LARGEST_OF_ALL


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
    found, declared = entries(node_id, language, INPUTS), declared_inputs(node_id)
    assert list(found) == list(declared)
    for name, (kind, options) in declared.items():
        label, about, meaning = found[name]
        assert len(meaning) > 5, name
        if language == "zh":
            assert chinese_names(node_id)[name] in label, name
        else:
            assert meaning == options["tooltip"], name
        if name in FILES:
            continue
        if isinstance(kind, list):
            assert about.startswith(options["default"]) and all(choice in about for choice in kind), name
        elif kind in ("INT", "FLOAT"):
            low, high, default = re.split(r" to | 到 |, |，", about)
            assert [float(low), float(default)] == [options["min"], options["default"]], name
            assert high == "2⁶⁴ − 1" if options["max"] == 2**64 - 1 else float(high) == options["max"], name
        elif kind == "BOOLEAN":
            assert about.endswith(("on", "开") if options["default"] else ("off", "关")), name
        elif kind == "STRING" and not options.get("forceInput"):
            assert not options["default"] or about.endswith(f"`{options['default']}`"), name
        else:
            assert re.findall(r"[A-Z_]+", about) == kind.split(","), name


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_the_outputs_are_those_of_the_code(node_id: str, language: str) -> None:
    found = entries(node_id, language, OUTPUTS)
    assert [(name, about) for name, (_, about, _) in found.items()] == list(declared_outputs(node_id).items())


def test_the_lists_are_as_the_tool_makes_them() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "make_help_lists.py"))["pages"]()
    stale = [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python tools/make_help_lists.py"
    assert set(made) == {path for pattern in ("*.md", "*/*.md") for path in DOCS.glob(pattern)}


def test_the_tool_renews_an_entry_and_keeps_what_is_written_by_hand() -> None:
    with_lists = runpy.run_path(str(ROOT / "tools" / "make_help_lists.py"))["with_lists"]
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    now = page("UnCLIPDecode", "en")
    old = now.replace("(1 to 1000, 25): Denoising steps.", "(1 to 9, 3): Something else.")
    old = re.sub(r"^- \*\*eta\*\*.*\n(  .*\n)*", "", old, flags=re.MULTILINE)
    new = with_lists(old, "UnCLIPDecode", texts["UnCLIPDecode"], "en")
    by_hand = "  Good: 0; 0.3 to 1 to vary an inverted picture.\n"  # which is gone with its entry
    assert old != now and by_hand in now and new == now.replace(by_hand, "")


@pytest.mark.parametrize(("node_id", "language"), NODES_AND_LANGUAGES)
def test_a_page_fits_the_panel(node_id: str, language: str) -> None:
    """Which is 270 pixels wide: no table, and no word that is longer than a line."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page(node_id, language))  # of a link its words
    assert not re.search(r"^\|", shown, re.MULTILINE)
    assert re.findall(r"[!-~]{33,}", shown) == []


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_other_languages_get_the_english_page(node_id: str) -> None:
    assert (DOCS / f"{node_id}.md").read_text(encoding="utf-8") == page(node_id, "en")


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
