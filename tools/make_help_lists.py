"""Make the lists of inputs and outputs in the help pages, and the pages that have no language.

Run from the root of the repository, after tools/make_locales.py: python tools/make_help_lists.py
The first line of each entry is made of what the node declares and of locales; lines below it, which begin
with two spaces, are written by hand and stay: good values, what to connect. All else of a page stays too.
ComfyUI asks for UnCLIPDecode/ja.md and, where there is none, for UnCLIPDecode.md: a copy of the English page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unclip.nodes import NODE_CLASS_MAPPINGS

ROOT = Path(__file__).resolve().parent.parent
DOCS, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
ENGLISH = "en"
INPUTS, OUTPUTS = 2, 3  # sections of a page, what stands above the first heading being 0
ON_DISK = ("file", "bundle", "folder")  # choices that are what is found on a disk

_WORDS = {
    "en": {
        "to": "{} to {}",
        "other": "{}; or {}",
        "found": "what is found on the disk",
        "switch": "on or off, {}",
        "true": "on",
        "false": "off",
        "text": "text",
        "optional": "optional",
        "between": ", ",
        "among": ", ",
        "entry": "- **{label}** ({about}): {meaning}",
    },
    "zh": {
        "to": "{} 到 {}",
        "other": "{}；另有 {}",
        "found": "磁盘上找到的项目",
        "switch": "开或关，{}",
        "true": "开",
        "false": "关",
        "text": "文本",
        "optional": "可选",
        "between": "，",
        "among": "、",
        "entry": "- **{label}**（{about}）：{meaning}",
    },
}
LANGUAGES = tuple(_WORDS)


def pages() -> dict[Path, str]:
    """The text of every page as it is to be."""
    made = {}
    for language in LANGUAGES:
        texts = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
        for node_id in NODE_CLASS_MAPPINGS:
            path = DOCS / node_id / f"{language}.md"
            made[path] = with_lists(path.read_text(encoding="utf-8"), node_id, texts[node_id], language)
    return made | {
        DOCS / f"{node_id}.md": made[DOCS / node_id / f"{ENGLISH}.md"] for node_id in NODE_CLASS_MAPPINGS
    }


def with_lists(page: str, node_id: str, texts: dict[str, Any], language: str) -> str:
    """A page with the entries of its lists as the node declares them, in its order.

    Args:
        texts: the node's entry in nodeDefs.json of the language.
    """
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    words = _WORDS[language]
    for number, kind, declared in (
        (INPUTS, "inputs", list(_inputs(node_id, words))),
        (OUTPUTS, "outputs", list(_outputs(node_id))),
    ):
        missing = [key for key, _, _ in declared if key not in texts[kind]]
        if missing:
            raise ValueError(
                f"locales/{language}/nodeDefs.json: {node_id} has no {kind} {', '.join(missing)}"
            )
        entries = [
            words["entry"].format(
                label=_label(name, texts[kind][key]["name"]), about=about, meaning=texts[kind][key]["tooltip"]
            )
            + below(parts[number], name)
            for key, name, about in declared
        ]
        if entries:
            before = re.split(r"^- \*\*", parts[number], maxsplit=1, flags=re.MULTILINE)[0].rstrip()
            parts[number] = before + "\n\n" + "\n".join(entries) + "\n\n"
    return "".join(parts)


def below(section: str, name: str) -> str:
    """What is written by hand below the first line of an entry."""
    found = re.search(rf"^- \*\*(?:[^*]* )?`?{name}`?\*\*.*((?:\n  .*)*)", section, re.MULTILINE)
    return "" if found is None else found[1]


def _label(name: str, shown: str) -> str:
    return name if shown == name else f"{shown} `{name}`"


def _inputs(node_id: str, words: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Key in nodeDefs.json, name, and what an input takes, for each."""
    for group, inputs in NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().items():
        for name, (kind, options) in inputs.items():
            yield name, name, _about(name, kind, options, words, group == "optional")


def _outputs(node_id: str) -> Iterator[tuple[str, str, str]]:
    cls = NODE_CLASS_MAPPINGS[node_id]
    for number, (name, kind) in enumerate(zip(cls.RETURN_NAMES, cls.RETURN_TYPES, strict=True)):
        yield str(number), name, kind


def _about(name: str, kind: Any, options: dict[str, Any], words: dict[str, str], optional: bool) -> str:
    """What an input takes and, behind it, its default; of a socket whether it may stay empty."""
    default = options.get("default")
    if name in ON_DISK and isinstance(kind, list):
        return words["found"]
    if isinstance(kind, list):
        others = [choice for choice in kind if choice != default]
        return words["other"].format(default, words["among"].join(others)) if others else str(default)
    if kind in ("INT", "FLOAT"):
        limits = words["to"].format(_number(options["min"]), _number(options["max"]))
        return limits + words["between"] + _number(default)
    if kind == "BOOLEAN":
        return words["switch"].format(words["true" if default else "false"])
    if kind == "STRING" and not options.get("forceInput"):
        return words["text"] + (words["between"] + f"`{default}`" if default else "")
    kinds = words["among"].join(kind.split(","))  # several, where a socket takes any of them
    return kinds + (words["between"] + words["optional"] if optional else "")


def _number(value: float) -> str:
    if value == 2**64 - 1:
        return "2⁶⁴ − 1"
    return str(value) if isinstance(value, int) else f"{value:g}"


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
