"""Files of captions as people write them, and what is said of those whose captions would be garbled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from unclip.core.data.prompts import read_prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,seed\na fox,1\na cat, asleep,2\n", "row 2: found 3 fields, expected 2, as many as the first"),
        ("text,seed,seed \na fox,1,2\n", "found two columns seed: give each a name of its own"),
        (
            'text\na fox\n"a cat\na dog\n',
            "cannot be read after row 1: unexpected end of data; are",
        ),
        ("text\nein Bär\n".encode("latin-1"), "is not UTF-8 (byte 0xe4 in line 2): save it as UTF-8"),
        ("text\na fox\n".encode("utf-16"), "is UTF-16, expected UTF-8: save it as UTF-8"),
        ("text\na fox\n".encode("utf-16-le"), "holds zeros, as UTF-16 does"),
    ],
)
def test_tables_whose_captions_would_be_garbled_are_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_prompts(tmp_path / "a.csv")
    assert str(error.value).startswith(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(("name", "content"), [("a.txt", "ein Bär"), ("a.jsonl", '{"text": "ein Bär"}')])
def test_other_files_in_another_encoding_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} is not UTF-8"):
        read_prompts(tmp_path / name)
    (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    assert read_prompts(tmp_path / name)[0].caption == "ein Bär"


def test_tables_as_spreadsheets_save_them(tmp_path: Path) -> None:
    text = '\ufefftext , seed,,\r\n"a fox, sitting",3,,,\r\n\r\n"two\nlines"\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    found = [(row.caption, row.seed, dict(row.options)) for row in read_prompts(tmp_path / "a.csv")]
    assert found == [("a fox, sitting", 3, {}), ("two\nlines", 1, {})]


def test_a_caption_that_is_no_text_says_what_it_is(tmp_path: Path) -> None:
    lines = ['{"text": 5}', '{"text": null}', '{"text": " "}', '{"text": "5"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    problems = [row.problem for row in read_prompts(tmp_path / "a.jsonl")]
    assert problems == ["its caption is 5, expected text", *["its caption is empty"] * 2, ""]


def test_the_field_of_the_captions_is_named_as_the_reader_knows_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words,seed\na fox,1\n")
    (tmp_path / "a.txt").write_text("a fox\n")
    with pytest.raises(ValueError, match=r"no text or caption among words, seed; name the .* in --field"):
        read_prompts(tmp_path / "a.csv", setting="--field")
    with pytest.raises(ValueError, match="; give the field of the captions such a name"):
        read_prompts(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"--field is words, but .* has no fields"):
        read_prompts(tmp_path / "a.txt", caption_field="words", setting="--field")


def test_every_seed_that_generate_takes_may_be_a_rows(tmp_path: Path) -> None:
    seeds = ("0", str(2**63), str(2**64 - 1), str(2**64), "-1", "1.5")
    (tmp_path / "a.csv").write_text("text,seed\n" + "".join(f"a fox,{seed}\n" for seed in seeds))
    rows = read_prompts(tmp_path / "a.csv")
    assert [row.seed for row in rows[:3]] == [0, 2**63, 2**64 - 1]
    assert not any(row.problem for row in rows[:3])
    for row in rows[3:]:
        assert row.problem.endswith(f"expected a whole number from 0 to {2**64 - 1}")


def test_rows_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"caption": "a fox", "seed": 3}, {"caption": "ein Bär", "seed": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.csv").write_text("caption,seed\na fox,3\nein Bär,\n", encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        found = read_prompts(tmp_path / f"a.{kind}", seed=10)
        assert [(row.caption, row.seed, dict(row.options)) for row in found] == [
            ("a fox", 3, {}),
            ("ein Bär", 11, {}),
        ]
    (tmp_path / "a.txt").write_text("one\n\n  two \n", encoding="utf-8")
    assert [(row.caption, row.seed) for row in read_prompts(tmp_path / "a.txt")] == [("one", 0), ("two", 1)]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.jsonl", "{", "line 1 is no JSON"),
        ("a.jsonl", "[1]", "line 1: expected a JSON object"),
        ("a.csv", "words\nx\n", "row 1: no text or caption among words"),
        ("a.txt", "\n", "holds no captions"),
        ("a.parquet", "x", "cannot be read"),
        ("a.doc", "x", "expected a file of captions that ends in txt, csv, jsonl, parquet"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_prompts(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        read_prompts(tmp_path / "none.txt")
