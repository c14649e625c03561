"""What the browser side of ComfyUI gets of this pack: help pages, translations and the script."""

from __future__ import annotations

import json

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

from .server import PACK

LANGUAGES = ("en", "zh")


def test_the_script_is_loaded(server):
    assert "/extensions/unclip/unclip.js" in server.get_json("/extensions")
    assert b"registerExtension" in server.get("/extensions/unclip/unclip.js")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_is_served(server, language):
    for node_id in NODE_CLASS_MAPPINGS:
        page = (PACK / "web" / "docs" / node_id / f"{language}.md").read_bytes()
        assert server.get(f"/extensions/unclip/docs/{node_id}/{language}.md") == page


def test_other_languages_get_a_page_too(server):
    """ComfyUI asks for the page of a language, and where there is none for the one without."""
    for node_id in NODE_CLASS_MAPPINGS:
        page = (PACK / "web" / "docs" / f"{node_id}.md").read_bytes()
        assert server.get(f"/extensions/unclip/docs/{node_id}.md") == page


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_served(server, language):
    served = server.get_json("/i18n")[language]
    folder = PACK / "locales" / language
    for node_id, entry in json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8")).items():
        assert served["nodeDefs"][node_id] == entry
    categories = json.loads((folder / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    assert served["nodeCategories"].items() >= categories.items()
