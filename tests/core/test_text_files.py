"""Files that people edit are read with the mark that their programs put at the beginning, or without."""

from __future__ import annotations

from pathlib import Path

import pytest
from unclip.core.formats.files.json_files import read_json_object
from unclip.core.text_files import read_text
from unclip.core.training.stages import read_toml


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_mark_at_the_beginning_is_no_part_of_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('{"name": "Bär"}\n', encoding=encoding)
    (tmp_path / "a.toml").write_bytes('name = "Bär"\r\n'.encode(encoding))
    assert read_json_object(tmp_path / "a.json") == read_toml(tmp_path / "a.toml") == {"name": "Bär"}
    assert read_text(tmp_path / "a.toml") == 'name = "Bär"\n'


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes('a = 1\nname = "Bär"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.toml is not UTF-8 \(byte 0xe4 in line 2\): save it as UTF-8"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(ValueError, match="no config file"):
        read_toml(tmp_path / "b.toml")
