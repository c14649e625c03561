"""Nothing that ``tools/new_node.py`` left to be written is still to be written."""

from __future__ import annotations

from ..helpers.sources import ROOT

PLACES = ("nodes/*.py", "locales/*/*.json", "web/docs/*/*.md", "tests/nodes/*.py")
MARK = "TODO"


def test_nothing_is_left_to_fill_in() -> None:
    left = [
        f"{path.relative_to(ROOT).as_posix()}:{number}: {line.strip()}"
        for pattern in PLACES
        for path in sorted(ROOT.glob(pattern))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MARK in line
    ]
    assert not left, "\n".join(["to be written:", *left])
