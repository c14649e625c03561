"""Settings of all stages in miniature, as TOML files give them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unclip.core.formats.native.checkpoints import save_stage
from unclip.core.networks.clip import ClipTokenizerConfig

from .bundle import DIM, TEXT_LENGTH, TEXT_WIDTH, tiny_bundle

MERGES = 1000
LOOP = {
    "steps": 60,
    "batch_size": 12,
    "learning_rate": 3e-3,
    "warmup": 5,
    "ema_decay": 0.9,
    "precision": "no",
    "compile": False,
    "log_every": 1,
    "checkpoint_every": 2,
    "log_with": [],
}


def write_tiny_clip(folder: Path) -> Path:
    """The CLIP model of the tiny bundle as a file."""
    path = folder / "clip.safetensors"
    save_stage(tiny_bundle(upsamplers=0).clip, path)
    return path


def stage_settings(shards: Path, clip_file: Path) -> dict[str, dict[str, Any]]:
    """Settings by stage. They learn from the shapes of ``helpers_training`` within seconds."""
    data = {"shards": str(shards)}
    common = {"data": data, "loop": dict(LOOP)}
    trained_on_clip = {**common, "clip": str(clip_file)}
    settings = {
        "clip": {
            **common,
            "space_id": "unclip/test",
            "model": {
                "embed_dim": 16,
                "vision": {"width": 32, "layers": 1, "image_size": 16, "patch_size": 8, "head_width": 16},
                "text": {
                    "width": 32,
                    "heads": 2,
                    "layers": 1,
                    "context_length": TEXT_LENGTH,
                    "vocab_size": ClipTokenizerConfig(MERGES).vocab_size,
                },
                "tokenizer": {"merges": MERGES},
            },
        },
        "prior": {
            **trained_on_clip,
            "model": {
                "dim": DIM,
                "text_dim": TEXT_WIDTH,
                "width": 32,
                "layers": 1,
                "heads": 2,
                "text_length": TEXT_LENGTH,
            },
            "diffusion": {"prediction": "x0", "clip_x0": 5.0},
        },
        "ar-prior": {
            **trained_on_clip,
            "fit_pictures": 60,
            "model": {
                "dim": DIM,
                "text_dim": TEXT_WIDTH,
                "components": 4,
                "buckets": 8,
                "match_buckets": 4,
                "width": 32,
                "layers": 1,
                "heads": 2,
                "text_length": TEXT_LENGTH,
                "text_codes": True,
            },
        },
        "decoder": {
            **trained_on_clip,
            "model": {
                "image_size": 16,
                "patch_size": 2,
                "channels": 32,
                "channel_mult": [1, 1],
                "res_blocks": [1, 1],
                "attention": [4],
                "head_dim": 16,
                "conditioning": {
                    "clip_dim": DIM,
                    "clip_tokens": 2,
                    "text_dim": TEXT_WIDTH,
                    "context_dim": 32,
                    "standardised": True,
                },
            },
            "diffusion": {"prediction": "v"},
        },
        "upsampler": {
            **common,
            "low_size": 16,
            "degradation": "blur",
            "model": {
                "image_size": 32,
                "patch_size": 2,
                "concat_channels": 3,
                "channels": 32,
                "channel_mult": [1, 1],
                "res_blocks": [1, 1],
                "resample_in_block": False,
                "noise_level": True,
            },
            "diffusion": {"prediction": "v"},
        },
        "classifier": {**common, "image_size": 16, "blocks": [1, 1, 1, 1]},
    }
    return copy.deepcopy(settings)


def changed(settings: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The settings with the value of a dotted name replaced."""
    result = copy.deepcopy(settings)
    *path, last = name.split(".")
    table = result
    for part in path:
        table = table[part]
    table[last] = value
    return result


def write_config(path: Path, settings: Mapping[str, Any]) -> Path:
    """The settings as a TOML file."""
    path.write_text("\n".join(_toml(settings)) + "\n", encoding="utf-8")
    return path


def _toml(settings: Mapping[str, Any], table: str = "") -> Iterator[str]:
    yield from (f"{k} = {json.dumps(v)}" for k, v in settings.items() if not isinstance(v, Mapping))
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield f"[{table}{name}]"
            yield from _toml(value, f"{table}{name}.")


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
