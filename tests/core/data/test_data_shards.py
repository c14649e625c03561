"""Webdataset shards: what of them is read, and where they may lie."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import random
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from unclip.core.data.decoding import open_picture, square
from unclip.core.data.opening import ALLOW_PIPE, open_batches
from unclip.core.data.settings import DataConfig
from unclip.core.data.shards import ShardSource, local_shard, shard_names

from ...helpers.pictures import encoded, picture, write_pictures, write_shards_of, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "folder")


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    return write_shards_of(folder, folder.parent / "shards")


# --- what is read ---


def test_a_shard_that_is_cut_has_what_lies_before_the_cut_and_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_shards_of(folder, tmp_path / "shards", per_shard=60)
    path = shards / "00000.tar"
    whole = path.read_bytes()
    assert len(ShardSource(str(path))) == 60
    assert not caplog.text
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    inside, between = members[100].offset_data + 5, members[90].offset
    for cut, pictures in ((len(whole) // 2, range(20, 40)), (inside, (33,)), (between, (30,))):
        path.write_bytes(whole[:cut])
        caplog.clear()
        source = ShardSource(str(path))
        assert len(source) in pictures
        assert f"{path} is cut short or damaged: its pictures are read up to 00" in caplog.text
    assert f"up to {source.key(len(source) - 1)}, and a whole one may" in caplog.text
    path.write_bytes(whole[:between] + b"x" * 512 + whole[between + 512 :])
    caplog.clear()
    assert len(ShardSource(str(path))) == 30
    assert f"{path} is cut short or damaged" in caplog.text
    (shards / "00001.tar").write_text("no tar")
    with pytest.raises(ValueError, match=r"00001\.tar is no tar file"):
        ShardSource(str(shards))


def test_only_named_endings_are_read(tmp_path: Path) -> None:
    """Webdataset's own decoders would unpickle the first, and run what it says."""
    image = encoded(picture(0))
    write_tar(
        tmp_path / "a.tar",
        {
            "x/0.pyd": b"cos\nsystem\n(S'false'\ntR.",
            "x/0.png": image,
            "x/0.txt": b"a disc",
            "1.jpg": encoded(picture(1), "jpg"),
            "1.json": b'{"caption": "one", "width": 48}',
            "2.webp": encoded(picture(2), "webp"),
            "3.txt": b"no picture",
            "4.a.png": image,
            "5.webp": encoded(picture(5), "webp"),
            "5.txt": b"five",
        },
    )
    source = ShardSource(str(tmp_path / "a.tar"))
    assert [source.key(i) for i in range(len(source))] == ["x/0", "1", "5"]
    assert [source.read(i).caption for i in range(3)] == ["a disc", "one", "five"]
    read = square(open_picture(source.read(2).picture), 40, "center", random.Random(0))
    assert np.array_equal(read, np.asarray(picture(5))[:, 4:44])  # the file is lossless
    assert source.missing == ("a.tar/2", "a.tar/3", "a.tar/4")


def test_captions_are_of_the_field_that_is_named(tmp_path: Path) -> None:
    """img2dataset writes the page's words to NAME.txt, whatever else it knows of a picture."""
    image = encoded(picture(0))
    facts = b'{"caption": "a disc", "dense": "a red disc on noise"}'
    files = {"0.png": image, "0.txt": b"a disc", "0.json": facts, "1.png": image, "1.txt": b"no json"}
    path = str(write_tar(tmp_path / "a.tar", files | {"2.png": image, "2.json": facts}))
    assert [ShardSource(path).read(row).caption for row in range(3)] == ["a disc", "no json", "a disc"]
    source = ShardSource(path, "dense")
    assert [source.key(row) for row in range(len(source))] == ["0", "2"]
    assert [source.read(row).caption for row in range(2)] == ["a red disc on noise"] * 2
    assert source.missing == ("a.tar/1",)
    with pytest.raises(ValueError, match=r"0\.json: no long among caption, dense"):
        ShardSource(path, "long").read(0)
    write_tar(tmp_path / "b.tar", {"1.png": image, "1.txt": b"no json"})
    with pytest.raises(ValueError, match=r"\(1 without\); expected NAME\..* with 'dense' in NAME\.json"):
        ShardSource(str(tmp_path / "b.tar"), "dense")


# --- where shards lie ---


def test_names_of_shards_are_expanded(shards: Path) -> None:
    every = [str(shards / f"0000{number}.tar") for number in range(3)]
    assert shard_names(str(shards)) == every
    assert shard_names(str(shards / "*.tar")) == every
    assert shard_names(str(shards / "{00000..00001}.tar")) == every[:2]
    assert shard_names(f"{every[2]}::{every[0]}") == [every[2], every[0]]
    assert shard_names("https://x.org/{0..2}.tar") == [f"https://x.org/{n}.tar" for n in range(3)]
    for name in (str(shards / "9*.tar"), str(shards / "9.tar")):
        with pytest.raises(ValueError, match=r"there are no shards .*9"):
            shard_names(name)
    for bomb in ("{0..99999999999}.tar", "{0..999}{0..999}{0..999}.tar"):
        with pytest.raises(ValueError, match="means more than 1,000,000 shards"):
            shard_names(bomb)


class Answers(http.server.SimpleHTTPRequestHandler):
    """Gives the shards of a folder, the first ``cut`` of them by half."""

    asked: list[str]
    cut = 0
    slowly = 0.0

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.asked.append(self.path)
        time.sleep(self.slowly)
        super().do_GET()

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if len(self.asked) <= self.cut else content)
        self.close_connection = True


@contextlib.contextmanager
def served(folder: Path, **more: object) -> Iterator[tuple[str, list[str]]]:
    """An address of the folder, and what has been asked for there."""
    answers = type("Handler", (Answers,), {"asked": [], **more})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(answers, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers.asked
    finally:
        server.shutdown()
        server.server_close()


def test_shards_are_fetched_once(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (place, asked):
        for _ in range(2):
            assert len(ShardSource(f"{place}/{{00000..00002}}.tar", cache=tmp_path / "cache")) == 60
        assert len(asked) == 3
        with pytest.raises(OSError, match=r"9\.tar: cannot be fetched"):
            ShardSource(f"{place}/9.tar", cache=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_shard_of_which_a_part_came_is_not_kept(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "00000.tar").stat().st_size
    with served(shards, cut=1) as (place, asked):
        url = f"{place}/00000.tar"
        with pytest.raises(OSError, match=rf"00000\.tar: cannot be fetched: \d+ bytes came of {whole};"):
            ShardSource(url, cache=tmp_path)
        assert not list(tmp_path.iterdir())
        assert len(ShardSource(url, cache=tmp_path)) == 25
        assert len(asked) == 2


@pytest.mark.skipif(os.name == "nt", reason="there, each process fetches its own")
def test_processes_wait_for_the_one_that_fetches(shards: Path, tmp_path: Path) -> None:
    with served(shards, slowly=0.3) as (place, asked):
        fetch = functools.partial(local_shard, f"{place}/00000.tar", tmp_path, False)
        # A thread has a lock of its own, as a process has, but shares the name of its unfinished file.
        with ThreadPoolExecutor(3) as threads:
            kept = [each.result() for each in [threads.submit(fetch) for _ in range(3)]]
        assert len(asked) == 1
    assert len(set(kept)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [kept[0].name]
    assert kept[0].read_bytes() == (shards / "00000.tar").read_bytes()


def test_commands_run_only_where_they_are_allowed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"pipe:cat {shards / '00000.tar'}"
    config = DataConfig(source="webdataset", path=command)
    monkeypatch.delenv(ALLOW_PIPE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"is a command; .* unless you allow it: --allow-pipe"):
        open_batches(config, 16, 4, seed=0)
    with pytest.raises(ValueError, match="for gs write pipe: and the command"):
        local_shard("gs://bucket/0.tar", tmp_path, allow_pipe=True)
    monkeypatch.setenv(ALLOW_PIPE, "1")
    assert len(open_batches(config, 16, 4, seed=0).source) == 25
    with pytest.raises(OSError, match=r"false: the command ended with 1"):
        ShardSource("pipe:false", cache=tmp_path, allow_pipe=True)
