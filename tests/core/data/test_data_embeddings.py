"""Embeddings of clip-retrieval, with their captions."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from unclip.core.data import embeddings as embeddings_module
from unclip.core.data.embeddings import MOST_OPEN, EmbeddingSource
from unclip.core.data.opening import open_embeddings
from unclip.core.data.settings import DataConfig

from ...helpers.embeddings import write_clip_retrieval


def test_embeddings_of_clip_retrieval_are_read_with_their_captions(tmp_path: Path) -> None:
    vectors = write_clip_retrieval(tmp_path)
    source = EmbeddingSource(tmp_path)
    assert (len(source), source.dim, source.space_id, source.groups) == (12, 6, "", (5, 7))
    for row in (0, 4, 5, 11):
        found = source.read(row)
        assert found.caption == f"caption {row}"
        assert np.array_equal(found.image, vectors[row].astype(np.float32))
        assert np.array_equal(found.text, -found.image)
    batches = open_embeddings(DataConfig(source="embeddings", path=str(tmp_path)), 6, seed=0)
    batch = batches(3)
    assert torch.equal(batch.images, torch.from_numpy(vectors[batch.indices].astype(np.float32)))
    assert batch.captions == [f"caption {row}" for row in batch.indices]


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    write_clip_retrieval(tmp_path, (8,))
    path = tmp_path / "img_emb" / "img_emb_0.npy"
    vectors = np.load(path)
    vectors[2, 1] = np.nan
    vectors[5] = 0
    np.save(path, vectors)
    batch = open_embeddings(DataConfig(source="embeddings", path=str(tmp_path)), 8, seed=0)(0)
    assert dict(batch.skipped).keys() == {"2", "5"}
    assert batch.images.isfinite().all()


def test_embeddings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no embeddings; expected the shards of `unclip embed`"):
        EmbeddingSource(tmp_path)
    write_clip_retrieval(tmp_path)
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", np.zeros((3, 6), np.float32))
    with pytest.raises(ValueError, match=r"img_emb_1\.npy: embeddings float32 \[3, 6\] for 7 captions"):
        EmbeddingSource(tmp_path)
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(ValueError, match=r"its captions are not there, expected .*metadata_1\.parquet"):
        EmbeddingSource(tmp_path)


def write_old_shards(folder: Path, count: int) -> Path:
    """Shards of two rows as ``unclip embed`` wrote them before it kept the pictures' names."""
    folder.mkdir()
    for number in range(count):
        tensors = {
            "image": np.full((2, 8), 1 + number, np.float16),
            "text": np.full((2, 8), -1 - number, np.float16),
            "captions": np.frombuffer(b"oneseven", np.uint8),
            "caption_ends": np.array([3, 8]),
        }
        facts = {"unclip_embeddings": json.dumps({"space": "x"})}
        save_file(tensors, folder / f"embeddings-{number:06}.safetensors", facts)
    return folder


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells what is open")
def test_many_files_are_not_open_at_once(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    embeddings_module._mapped.cache_clear()
    count, before = MOST_OPEN + 20, opened()
    source = EmbeddingSource(write_old_shards(tmp_path / "many", count))
    assert opened() <= before
    found = [source.read(row) for row in range(2 * count)]
    assert [(row.image[0], row.text[7], row.caption) for row in found] == [
        (1 + number, -1 - number, caption) for number in range(count) for caption in ("one", "seven")
    ]
    assert before < opened() <= before + MOST_OPEN
    assert [source.key(row) for row in (0, 3)] == ["0", "3"]
    again = pickle.dumps(source)  # as workers are given it: without the embeddings themselves
    assert len(again) < 1000 * count
    assert pickle.loads(again).read(5).image[0] == 3


@pytest.mark.parametrize("kind", ["own", "clip-retrieval"])
def test_what_the_system_refuses_is_not_called_damaged(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    folder = tmp_path / "data"
    if kind == "own":
        write_old_shards(folder, 2)
        monkeypatch.setattr(embeddings_module, "read_header", refused)
    else:
        write_clip_retrieval(folder)
        monkeypatch.setattr(np, "load", refused)
    with pytest.raises(OSError, match=r"Too many open files: .*0"):
        EmbeddingSource(folder)


def test_shards_whose_parts_do_not_fit_are_named(tmp_path: Path) -> None:
    path = write_old_shards(tmp_path / "e", 1) / "embeddings-000000.safetensors"
    facts = {"unclip_embeddings": json.dumps({"space": "x"})}
    for ends, message in (([3, 9], "do not end where it says"), ([8], "are not of one number")):
        tensors = {name: np.ones((2, 8), np.float16) for name in ("image", "text")}
        tensors["captions"] = np.frombuffer(b"oneseven", np.uint8)
        save_file({**tensors, "caption_ends": np.array(ends)}, path, facts)
        with pytest.raises(ValueError, match=rf"000000\.safetensors is no shard .*{message}"):
            EmbeddingSource(path.parent)


def test_settings_of_pictures_are_refused_where_nobody_sees_one(tmp_path: Path) -> None:
    given = {"source": "embeddings", "path": str(write_old_shards(tmp_path / "e", 1))}
    for name, value in {"crop": "random", "min_side": 64, "max_aspect": 2.0}.items():
        with pytest.raises(ValueError, match=rf"^data\.{name} is .*'embeddings' does not know: leave it out"):
            DataConfig(**given, **{name: value})
    asked = DataConfig(**given, caption_field="dense")
    with pytest.raises(ValueError, match=r"^data\.caption_field is 'dense', but .* holds shards of `unclip"):
        open_embeddings(asked, 1, seed=0)
