"""Embeddings as clip-retrieval writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_clip_retrieval(folder: Path, rows: tuple[int, ...] = (5, 7), dim: int = 6) -> np.ndarray:
    """Files of so many rows each; the image embeddings [N, D] float16."""
    import pyarrow
    from pyarrow import parquet

    vectors = np.random.default_rng(0).normal(size=(sum(rows), dim)).astype(np.float16)
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
