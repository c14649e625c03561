"""The grid of patches and the edges of pictures, stage by stage, beside the true pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...data.batches import load_pictograms
from ...pipelines.encode import encode_text
from ...pipelines.generate import generate, picture_size
from ...pipelines.upsample import upsample
from ...stages import Bundle, UpsamplerStage
from .config import EvaluationConfig, SharpnessConfig
from .edges import FLAT, EdgeProfile, edge_profile, grid_energy
from .prompts import draw_prompts, render_prompts
from .report import Progress

_AT_ONCE = 4  # large pictures


def measure_sharpness(
    config: EvaluationConfig, sharpness: SharpnessConfig, bundle: Bundle, on_progress: Progress | None = None
) -> dict[str, Any]:
    """The table ``sharpness``: by the side of the pictures, from the decoder's to the last upsampler's.

    ``grid`` has, of ``real`` pictures and of ``generated`` ones, the energy of the gradient at multiples of
    the patch and between them, of ``all`` parts and of ``flat`` ones. ``edges`` has the profile across edges
    of ``real`` pictures and of ``generated`` ones, each where its own edges are; and, of an upsampler, of
    ``upsampled`` true pictures where the edges of the larger true pictures are.
    """
    prompts = draw_prompts(load_pictograms(config.data), sharpness.pictures, config.seed)
    texts = [prompt.caption for prompt in prompts]
    steps = 1 + sharpness.upsamplers
    tell = None if on_progress is None else lambda done: on_progress("sharpness", done / steps, len(texts))
    options = replace(config.generate_options(config.priors[0]), upsamplers=0)
    made = generate(bundle, texts, seed=config.seed, options=options, on_progress=tell)
    sizes: dict[str, Any] = {}
    for index in range(steps):
        size = picture_size(bundle, index)
        real = render_prompts(prompts, size)
        edges: dict[str, EdgeProfile | None] = {"real": edge_profile(real)}
        if index:
            stage = bundle.upsamplers[index - 1]
            enlarged = _upsampled(config, bundle, stage, render_prompts(prompts, stage.low_size), texts)
            edges["upsampled"] = edge_profile(enlarged, located=real)
            made = _upsampled(config, bundle, stage, made, texts)
        edges["generated"] = edge_profile(made)
        sizes[str(size)] = {
            "grid": {"real": _grid(real, sharpness), "generated": _grid(made, sharpness)},
            "edges": {name: None if found is None else found.to_json() for name, found in edges.items()},
        }
        if on_progress is not None:
            on_progress("sharpness", len(texts) * (index + 1) / steps, len(texts))
    return {"pictures": len(texts), "prior": config.priors[0], "patch": sharpness.patch, "sizes": sizes}


def _grid(pictures: Tensor, sharpness: SharpnessConfig) -> dict[str, Any]:
    return {
        "all": grid_energy(pictures, sharpness.patch).to_json(),
        "flat": grid_energy(pictures, sharpness.patch, FLAT).to_json(),
    }


def _upsampled(
    config: EvaluationConfig, bundle: Bundle, stage: UpsamplerStage, pictures: Tensor, texts: list[str]
) -> Tensor:
    """Each with the seed of its place, a few at once."""
    assert bundle.clip is not None
    parts = []
    for start in range(0, len(texts), _AT_ONCE):
        few = slice(start, start + _AT_ONCE)
        text = encode_text(bundle.clip, texts[few])
        seed = config.seed + start
        parts.append(upsample(stage, pictures[few], text, seed=seed, options=config.upsampler).cpu())
    return torch.cat(parts)
