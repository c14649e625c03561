"""Embeddings of clip-retrieval, with their captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from unclip.core.data.embeddings import EmbeddingSource
from unclip.core.data.opening import open_embeddings
from unclip.core.data.settings import DataConfig


def write_clip_retrieval(folder: Path, rows: tuple[int, ...] = (5, 7)) -> np.ndarray:
    import pyarrow
    from pyarrow import parquet

    vectors = np.random.default_rng(0).normal(size=(sum(rows), 6)).astype(np.float16)
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    first = 0
    for number, count in enumerate(rows):
        part = vectors[first : first + count]
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", part)
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", -part)
        table = {"caption": [f"caption {first + row}" for row in range(count)], "key": list(range(count))}
        parquet.write_table(pyarrow.table(table), folder / "metadata" / f"metadata_{number}.parquet")
        first += count
    return vectors


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
