"""Pictures and captions to shards of CLIP embeddings, by any number of processes, in any number of goes."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from ..config import POSITIVE, Range, require_ranges
from ..data.batches import Skipped, in_unit_range
from ..data.decoding import open_picture, square
from ..data.embeddings import ESCAPED, MANIFEST, SHARDS, shard_file
from ..data.manifest import require_same
from ..data.opening import open_captioned
from ..data.parts import read_parts
from ..data.process import ALONE, Process, together
from ..data.settings import DataConfig
from ..data.sources import PictureSource, shard_name
from ..writing import written_whole
from .fingerprint import fingerprint
from .frozen_clip import FrozenClip, load_frozen_clip, stage_file
from .settings import LARGEST_BATCH


@dataclass(frozen=True)
class EmbeddingConfig:
    """What is embedded, and how.

    Attributes:
        data: pictures with captions.
        clip: file or folder of a CLIP model.
        rows: pictures in a shard, by their place in the data; those that cannot be used are left out.
        batch_size: pictures that go through CLIP at once; a shard's are always the same ones, so that its
            bytes do not depend on who makes it.
    """

    data: DataConfig
    clip: str
    rows: int = 4096
    batch_size: int = 64

    def __post_init__(self) -> None:
        require_ranges(self, "", rows=POSITIVE, batch_size=Range(1, LARGEST_BATCH))


@dataclass(frozen=True)
class EmbeddingReport:
    """How far the process is: shards done of its own, and what could not be used so far."""

    done: int
    shards: int
    skipped: int


def embed_pictures(
    config: EmbeddingConfig,
    output: Path,
    device: torch.device,
    process: Process = ALONE,
    workers: int = 0,
    on_shard: Callable[[EmbeddingReport], None] | None = None,
) -> list[Skipped]:
    """Write ``embeddings-NNNNNN.safetensors``: ``image`` and ``text`` [N, D] float16, captions and names.

    Each process makes every ``process.world``-th shard; shards that are there already are left as they are.

    Returns:
        What this process could not use.

    Raises:
        ValueError: data or a model that cannot be read, or ``output`` holds embeddings of others.
    """
    source = open_captioned(config.data)
    clip = load_frozen_clip(Path(config.clip))
    output.mkdir(parents=True, exist_ok=True)
    facts = _facts(config, source, clip)
    require_same(
        output / MANIFEST, facts, "embeddings", [SHARDS], write=process.rank == 0, since=("weights",)
    )
    together(process, ())
    starts = range(process.rank * config.rows, len(source), process.world * config.rows)
    skipped: list[Skipped] = []
    for done, first in enumerate(starts, 1):
        path = output / shard_file(first // config.rows)
        if not path.exists():
            indices = range(first, min(first + config.rows, len(source)))
            _write(path, _embed(source, indices, config, clip, device, workers, skipped), clip.space.id)
        if on_shard is not None:
            on_shard(EmbeddingReport(done, len(starts), len(skipped)))
    return skipped


def _square(content: bytes, config: DataConfig, size: int) -> np.ndarray:
    """[size, size, 3] uint8."""
    return square(open_picture(content, config.min_side, config.max_aspect), size, "center", random.Random(0))


def _embed(
    source: PictureSource,
    indices: range,
    config: EmbeddingConfig,
    clip: FrozenClip,
    device: torch.device,
    workers: int,
    skipped: list[Skipped],
) -> dict[str, np.ndarray]:
    size = config.batch_size
    parts = [indices[first : first + size] for first in range(0, len(indices), size)]
    prepare = partial(_square, config=config.data, size=clip.network.config.vision.image_size)
    images, texts, captions, keys = [], [], [], []
    for part in read_parts(source, prepare, parts, workers):
        skipped += part.skipped
        if not part.rows:
            continue
        pixels = in_unit_range(torch.from_numpy(np.stack(part.rows)).permute(0, 3, 1, 2).to(device))
        images.append(clip.encode_images(pixels).cpu())
        texts.append(clip.encode_tokens(clip.tokenizer(part.captions).to(device))[2].cpu())
        captions += [caption.encode() for caption in part.captions]
        keys += [shard_name(key).encode(errors=ESCAPED) for key in part.keys]
    return {
        "image": _vectors(images, clip.space.dim),
        "text": _vectors(texts, clip.space.dim),
        "captions": np.frombuffer(b"".join(captions), np.uint8),
        "caption_ends": _ends(captions),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": _ends(keys),
    }


def _ends(texts: list[bytes]) -> np.ndarray:
    """Where each text ends when they stand one after the other."""
    return np.cumsum([len(each) for each in texts], dtype=np.int64)


def _vectors(parts: list[torch.Tensor], dim: int) -> np.ndarray:
    return torch.cat([torch.zeros(0, dim), *parts]).half().numpy()


def _write(path: Path, tensors: dict[str, np.ndarray], space_id: str) -> None:
    facts = json.dumps({"space": space_id})
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        # Not by safetensors' own function: its files are private, and killed it leaves others behind.
        file.write(save(tensors, {"unclip_embeddings": facts}))
        file.flush()
        os.fsync(file.fileno())


def _facts(config: EmbeddingConfig, source: PictureSource, clip: FrozenClip) -> dict[str, Any]:
    """What must be the same for shards to belong together."""
    some = [source.key(i) for i in range(0, len(source), max(1, len(source) // 1000))]
    return {
        "space": clip.space.id,
        "clip": Path(config.clip).name,
        "weights": fingerprint(stage_file(Path(config.clip))),  # a model that was trained again has its name
        "pictures": len(source),
        "names": hashlib.sha256("\n".join(some).encode("utf-8", "surrogateescape")).hexdigest()[:16],
        "rows": config.rows,
        "batch_size": config.batch_size,
        "min_side": config.data.min_side,
        "max_aspect": config.data.max_aspect,
        "caption_field": config.data.caption_field,
    }
