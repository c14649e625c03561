"""Captions of a folder of pictures in its metadata files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from unclip.core.data.folders import FolderSource
from unclip.core.data.prompts import read_prompts
from unclip.core.data.shards import ShardSource

from ...helpers.pictures import write_pictures, write_tar


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
        ('{"file": "0000.png"}', r"row 1: no file_name among file; expected one with the name of a picture"),
        ('{"file_name": null}', r"row 1: file_name is None, expected the name of a picture"),
        ("[1]", r"metadata\.jsonl, line 1: expected a JSON object"),
        ("{", r"metadata\.jsonl, line 1 is no JSON"),
    ):
        (folder / "metadata.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            FolderSource(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0000.png", "words": "x"}')
    assert FolderSource(folder, "words").read(0).caption == "x"


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_tables_with_other_separators_are_told(tmp_path: Path, separator: str, name: str) -> None:
    folder = write_pictures(tmp_path / "folder", 1)
    hint = f"The columns seem to be separated by {name}: save the table with commas"
    for place in (folder / "metadata.csv", tmp_path / "prompts.csv"):
        columns = "text" if place.stem == "prompts" else "file_name"
        place.write_text(f"{columns}{separator}other\n0000.png{separator}x\n")
    with pytest.raises(ValueError, match=rf"metadata\.csv, row 1: no file_name among .*caption\. {hint}$"):
        FolderSource(folder)
    with pytest.raises(ValueError, match=rf"prompts\.csv, row 1: no text or caption among .*\. {hint}$"):
        read_prompts(tmp_path / "prompts.csv")
    (folder / "metadata.csv").write_text("file;name,text\n0000.png,x\n")
    with pytest.raises(ValueError, match=r"among file;name, text; .* caption$"):
        FolderSource(folder)


def test_rows_without_a_picture_and_second_rows_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "folder", 2)
    write_pictures(folder / "sub", 1)
    (folder / "notes.bmp").write_bytes(b"")  # told as a picture of another kind
    rows = [("0000.png", "one"), ("gone.png", "x"), ("notes.bmp", "y"), ("0000.png", "two")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "sub" / "metadata.csv").write_text("file_name,text\nlost.png,z\n0000.png,inner\n")
    with caplog.at_level(logging.WARNING):
        assert FolderSource(folder).read(0).caption == "two"
    assert caplog.messages[:2] == [
        f"{folder / 'metadata.jsonl'}: 1 rows are of pictures that have one already, and take its place: "
        f"0000.png",
        f"{folder}: metadata has 2 rows of pictures that are not there: gone.png, sub/lost.png",
    ]
    caplog.clear()
    assert FolderSource(folder, captions="unread").read(0).caption == ""
    assert "metadata" not in caplog.text


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_with_a_mark_at_its_beginning(tmp_path: Path, ending: str) -> None:
    folder = write_pictures(tmp_path / "folder", 1)
    content = 'file_name,text\n0000.png,"ein Bär"\n'
    if ending == "jsonl":
        content = json.dumps({"file_name": "0000.png", "text": "ein Bär"}, ensure_ascii=False)
    (folder / f"metadata.{ending}").write_bytes(content.encode("utf-8-sig"))
    assert FolderSource(folder).read(0).caption == "ein Bär"


def test_metadata_whose_captions_would_be_garbled_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 1)
    for content, message in (
        ("file_name,text\n0000.png,ein Bär\n".encode("latin-1"), "metadata.csv is not UTF-8"),
        (b"file_name,text\n0000.png,a fox, sitting\n", "row 1: found 3 fields, expected 2"),
        (b"file_name,text,text\n0000.png,a,b\n", "found two columns text"),
    ):
        (folder / "metadata.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            FolderSource(folder)


def test_captions_beside_pictures_are_utf_8(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 2)
    (folder / "0000.txt").write_bytes("ein Bär\n".encode("utf-8-sig"))
    (folder / "0001.txt").write_bytes("ein Bär\n".encode("latin-1"))
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shard = write_tar(tmp_path / "0.tar", files)
    for source in (FolderSource(folder), ShardSource(str(shard))):
        assert source.read(0).caption == "ein Bär"
        with pytest.raises(ValueError, match="is not UTF-8"):
            source.read(1)


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 2)
    (folder / "0001.png").rename(folder / "0001.PNG")
    (folder / "0001.txt").rename(folder / "0001.TXT")
    source = FolderSource(folder)
    assert [source.read(i).caption for i in range(len(source))] == ["a red disc", "a green disc"]


def test_pictures_of_other_kinds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_pictures(tmp_path / "folder", 1)
    for name in ("a.bmp", "b.BMP", "c.tiff", "notes.md"):
        (folder / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(FolderSource(folder)) == 1
    assert caplog.messages == [
        f"{folder}: pictures of other kinds are passed over (2 bmp, 1 tiff): save them as jpg/jpeg/png/webp"
    ]
