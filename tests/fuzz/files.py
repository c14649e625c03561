"""Small valid files of every kind, once for a session: what the cases damage."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.native.checkpoints import save_bundle, save_stage
from unclip.core.formats.native.embedding_file import save_embedding

from ..helpers.bundle import tiny_bundle
from ..helpers.dalle2 import NETWORK, dalle2_state
from ..helpers.karlo import save_as_published, tiny_pipeline


def write_whole_files(root: Path) -> None:
    """Models in several layouts, and an embedding."""
    bundle = tiny_bundle()
    save_bundle(bundle, root / "models" / "native")
    save_stage(bundle.decoder, root / "models" / "shards" / "decoder.safetensors", max_shard_bytes=400_000)
    save_as_published(tiny_pipeline(), root / "models" / "karlo")
    prior = {f"net.{name}": value for name, value in dalle2_state().items()}
    settings = {"net": {**NETWORK, "self_cond": False}, "beta_schedule": "cosine", "predict_x_start": True}
    settings |= {"clip": {"make": "openai", "model": "ViT-L/14"}, "condition_on_text_encodings": True}
    (root / "models" / "laion").mkdir()
    torch.save({"model": prior, "step": 5}, root / "models" / "laion" / "best.pth")
    (root / "models" / "laion" / "prior_config.json").write_text(json.dumps({"prior": settings}))
    vectors = torch.randn(3, bundle.clip.space.dim, generator=torch.Generator().manual_seed(5))
    save_embedding(Embedding(vectors, bundle.clip.space), root / "three.safetensors")
