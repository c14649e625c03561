"""CLIP embeddings in safetensors files that say which space they are from.

One tensor ``vectors`` [B, D] float32; the metadata key ``unclip_embedding`` holds JSON: format version and
space (id, dim, norm, mean, std).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ...config import config_from_dict, config_to_dict
from ...embeddings.space import Embedding, EmbeddingSpace
from ..files.safetensors_io import iterate_tensors, read_tensor_file, write_tensor_file
from ..mapping.number_types import is_finite, require_number_type
from .header import FORMAT, read_metadata

METADATA_KEY = "unclip_embedding"
TENSOR = "vectors"


def save_embedding(embedding: Embedding, path: str | Path, *, new: bool = False) -> Path:
    """Write embeddings to a ``.safetensors`` file, whole or not at all.

    Args:
        new: replace nothing.

    Raises:
        ValueError: values that are not finite, or a name without ``.safetensors``.
        FileExistsError: with ``new``, where ``path`` is there.
    """
    vectors = embedding.vectors.detach().to("cpu", torch.float32).contiguous()
    if not is_finite(vectors):
        raise ValueError(
            "embedding: holds NaN or infinite values, which are not worth keeping; make it again"
        )
    header = {"format": FORMAT, "space": config_to_dict(embedding.space)}
    metadata = {METADATA_KEY: json.dumps(header, ensure_ascii=False)}
    return write_tensor_file(path, {TENSOR: vectors}, metadata, max_shard_bytes=None, new=new)


def load_embedding(path: str | Path) -> Embedding:
    """Read embeddings, float32 on the CPU.

    Raises:
        ValueError: no such file, not safetensors, no embedding file, a newer version, a damaged one, or
            values that are not finite; names the file.
    """
    file = read_tensor_file(path)
    where = str(file.path)
    if METADATA_KEY not in file.metadata:
        raise ValueError(
            f"{where}: is a safetensors file, but holds no unCLIP embedding (its metadata lacks "
            f"{METADATA_KEY!r}); choose a file that Save unCLIP Embedding wrote"
        )
    header = read_metadata(file, METADATA_KEY)
    tensors = dict(iterate_tensors(file))
    if set(tensors) != {TENSOR}:
        raise ValueError(
            f"{where}: holds the tensors {', '.join(sorted(tensors)) or 'none'}; expected {TENSOR} alone"
        )
    try:
        space = config_from_dict(EmbeddingSpace, header.get("space"), "space")
        require_number_type(where, TENSOR, tensors[TENSOR].dtype)
        vectors = tensors[TENSOR].float().clone()  # not tied to the mapped file
        if not is_finite(vectors):
            raise ValueError(f"{TENSOR} holds NaN or infinite values; make the embedding again")
        return Embedding(vectors, space)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
