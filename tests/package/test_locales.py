"""Translations: every word of every node, in every language, and English as the code has it."""

from __future__ import annotations

import json
import re
import runpy
from typing import Any

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..helpers.sources import ROOT
from ..helpers.translated import LANGUAGES, NODE_IDS, declared_inputs, declared_outputs, is_chinese

LOCALES = ROOT / "locales"
# ComfyUI's translation library gives these a meaning of their own.
MARKUP = re.compile(r"[{}@|]")


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / name).read_text(encoding="utf-8"))


def texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for each in value.values() for text in texts(each)]


def test_english_is_what_the_nodes_declare() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "make_locales.py"))
    again = "run: python tools/make_locales.py"
    assert read("en", "nodeDefs.json") == made["node_definitions"](), again
    assert read("en", "main.json") == made["main_definitions"](), again


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_has_nodes_that_are_gone(language: str) -> None:
    assert set(read(language, "nodeDefs.json")) == set(NODE_IDS)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", NODE_IDS)
def test_a_node_is_translated_whole(node_id: str, language: str) -> None:
    entry = read(language, "nodeDefs.json")[node_id]
    assert set(entry) == {"display_name", "description", "inputs", "outputs"}
    assert set(entry["inputs"]) == set(declared_inputs(node_id))
    assert set(entry["outputs"]) == {str(number) for number in range(len(declared_outputs(node_id)))}
    for group in ("inputs", "outputs"):
        assert all(set(each) == {"name", "tooltip"} for each in entry[group].values())
    assert all(text.strip() for text in texts(entry))


@pytest.mark.parametrize("language", LANGUAGES)
def test_categories_are_translated(language: str) -> None:
    parts = {part for cls in NODE_CLASS_MAPPINGS.values() for part in cls.CATEGORY.split("/")}
    assert set(read(language, "main.json")["nodeCategories"]) == parts


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["nodeDefs.json", "main.json"])
def test_texts_have_no_markup(name: str, language: str) -> None:
    assert [text for text in texts(read(language, name)) if MARKUP.search(text)] == []


def test_chinese_is_chinese() -> None:
    definitions = read("zh", "nodeDefs.json")
    for node_id, entry in definitions.items():
        assert is_chinese(entry["display_name"] + entry["description"]), node_id
        words = [entry["description"]]
        words += [each["tooltip"] for group in ("inputs", "outputs") for each in entry[group].values()]
        assert [text for text in words if not is_chinese(text)] == [], node_id
    names = [entry["display_name"] for entry in definitions.values()]
    assert len(set(names)) == len(names)
    categories = read("zh", "main.json")["nodeCategories"]
    assert [key for key, text in categories.items() if key != "unCLIP" and not is_chinese(text)] == []


def test_a_word_is_translated_the_same_way_everywhere() -> None:
    """The same English tooltip has one Chinese one; the same input of two nodes has one Chinese name."""
    found: dict[tuple[str, str], set[str]] = {}
    english, chinese = read("en", "nodeDefs.json"), read("zh", "nodeDefs.json")
    for node_id in NODE_IDS:
        for group in ("inputs", "outputs"):
            for key, each in english[node_id][group].items():
                for kind in ("name", "tooltip"):
                    found.setdefault((kind, each[kind]), set()).add(chinese[node_id][group][key][kind])
    assert {source: words for source, words in found.items() if len(words) > 1} == {}


def unnamed_choices(english: str, translated: str, choices: list[str]) -> list[str]:
    """Choices that the English words explain and the translation does not; those of several words aside."""

    def says(text: str, choice: str) -> bool:
        return re.search(rf"(?<![A-Za-z0-9_]){re.escape(choice)}(?![A-Za-z0-9_])", text) is not None

    names = [choice for choice in choices if " " not in choice]
    return [choice for choice in names if says(english, choice) and not says(translated, choice)]


def test_a_translation_explains_the_same_choices() -> None:
    """A sampler that was added is explained in Chinese, too."""
    english, chinese = read("en", "nodeDefs.json"), read("zh", "nodeDefs.json")
    found = []
    for node_id in NODE_IDS:
        for name, (kind, _) in declared_inputs(node_id).items():
            if isinstance(kind, list):
                texts_of = (each[node_id]["inputs"][name]["tooltip"] for each in (english, chinese))
                found += [f"{node_id}.{name}: {choice}" for choice in unnamed_choices(*texts_of, kind)]
    assert found == []
    assert unnamed_choices("ddim goes, ddpm adds", "ddim 走", ["ddim", "ddpm", "other"]) == ["ddpm"]
