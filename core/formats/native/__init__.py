"""unclip's own format: stages, bundles and embeddings."""

from __future__ import annotations

from .checkpoints import load_bundle, load_stage, read_bundle, require_stage, save_bundle, save_stage

__all__ = ["load_bundle", "load_stage", "read_bundle", "require_stage", "save_bundle", "save_stage"]
