"""Webdataset shards: what of them is read, and where they may lie."""

from __future__ import annotations

import functools
import http.server
import random
import threading
from pathlib import Path

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


def test_a_shard_that_is_cut_has_what_lies_before_the_cut(folder: Path, tmp_path: Path) -> None:
    shards = write_shards_of(folder, tmp_path / "shards", per_shard=60)
    path = shards / "00000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 20 < len(ShardSource(str(path))) < 40
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


def test_shards_are_fetched_once(shards: Path, tmp_path: Path) -> None:
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(shards))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar"
        for _ in range(2):
            assert len(ShardSource(url, cache=tmp_path / "cache")) == 60
        assert len(asked) == 3
        with pytest.raises(OSError, match=r"9\.tar: cannot be fetched"):
            ShardSource(url.replace("{00000..00002}", "9"), cache=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 3
    finally:
        server.shutdown()
        server.server_close()


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
