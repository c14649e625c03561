"""Captions of a folder of pictures in its metadata files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unclip.core.data.folders import FolderSource

from ...helpers.pictures import write_pictures


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_come_from_metadata(tmp_path: Path, kind: str) -> None:
    folder = write_pictures(tmp_path / "folder", 3)
    write_pictures(folder / "sub", 2)
    rows = [("0000.png", "an ä"), ("0002.png", "a, b"), ("sub/0001.png", "inner"), ("gone.png", "x")]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    else:
        lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
    (folder / f"metadata.{kind}").write_text("\n".join(lines), encoding="utf-8")
    source = FolderSource(folder)
    found = {source.key(i): source.read(i).caption for i in range(len(source))}
    expected = {"0000": "an ä", "0001": "a green disc", "0002": "a, b", "sub/0001": "inner"}
    assert found == {**expected, "sub/0000": "a red disc"}


def test_metadata_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 2)
    for content, message in (
        ('{"file_name": "0000.png", "words": "x"}', r"row 1: no text or caption among file_name, words"),
        ('{"file": "0000.png"}', r"row 1: file_name is None"),
        ("[1]", r"metadata\.jsonl: expected one JSON object a line"),
        ("{", r"metadata\.jsonl cannot be read"),
    ):
        (folder / "metadata.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            FolderSource(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0000.png", "words": "x"}')
    assert FolderSource(folder, "words").read(0).caption == "x"
