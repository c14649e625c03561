"""Files written whole or not at all, and what killed runs left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from unclip.core import writing
from unclip.core.formats.files.safetensors_io import write_tensor_file
from unclip.core.pictures.files import write_png


@pytest.fixture(autouse=True)
def first_time(monkeypatch):
    monkeypatch.setattr(writing, "_swept", set())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_of_two_that_make_one_new_folder_the_second_is_told_and_the_first_is_kept(tmp_path):
    target = tmp_path / "new"
    refused = pytest.raises(ValueError, match="new exists already: choose a new folder")
    with refused, writing.new_folder(target) as second:
        (second / "a.txt").write_text("second")
        target.mkdir()  # by another process
        (target / "a.txt").write_text("first")
    assert names(tmp_path) == ["new"] and (target / "a.txt").read_text() == "first"


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing.written_whole(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a.txt"] and path.read_text() == "old"
    with writing.written_whole(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"] and path.read_text() == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from unclip.core.writing import staging_folder, written_whole
folder = Path(sys.argv[1])
with written_whole(folder / "fox.png") as unfinished, staging_folder(folder) as staging:
    unfinished.write_bytes(bytes(1000))
    (staging / "part.bin").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("next_run", ["picture", "weights", "staging"])
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, next_run):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ, check=False)
    assert killed.returncode < 0
    assert len(names(tmp_path)) == 2 and all(name.endswith(".tmp") for name in names(tmp_path))
    if next_run == "picture":
        write_png(tmp_path / "other.png", Image.new("RGB", (2, 2)))
    elif next_run == "weights":
        write_tensor_file(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {}, None)
    else:
        with writing.staging_folder(tmp_path):
            assert len(names(tmp_path)) == 1
    assert [name for name in names(tmp_path) if name.endswith(".tmp")] == []


def test_what_others_are_writing_stays(tmp_path):
    """A process that lives, one of another machine, and a person's own files."""
    machine = writing._machine()
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        kept = [f".a.png.{other.pid}-{machine}.tmp", ".b.png.1-00000000.tmp", ".mine.tmp", "c.png.7.tmp"]
        for name in kept:
            (tmp_path / name).touch()
        writing.remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted(kept)
    finally:
        other.communicate()
    writing._swept.clear()
    writing.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(kept[1:])


def test_files_of_other_machines_and_of_older_versions_go_after_a_day(tmp_path):
    for name in (".b.png.1-00000000.tmp", ".fox_00001_.png.4242.tmp"):
        (tmp_path / name).touch()
    writing.remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 2
    long_ago = time.time() - writing.STALE - 60
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    writing._swept.clear()
    writing.remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").touch()
    process = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    link = tmp_path / f".x.{int(process.stdout)}-{writing._machine()}.tmp"
    link.symlink_to(tmp_path / "precious")
    writing.remove_leftovers(tmp_path)
    assert not link.is_symlink() and (Path(tmp_path) / "precious" / "a").is_file()
