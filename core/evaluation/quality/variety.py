"""Do seeds differ? How far apart the embeddings lie that a prior imagines of one caption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...data.batches import load_pictograms
from ...data.captions import WHITE_BACKGROUND, with_article
from ...pipelines.encode import encode_images, encode_text
from ...pipelines.generate import sample_prior
from ...stages import Bundle
from .config import EvaluationConfig, VarietyConfig
from .distribution import unit
from .prompts import Prompt, draw_prompts, true_pictures
from .report import Progress


def mean_distance(vectors: Tensor) -> float:
    """Mean cosine distance of all pairs of [N, D], N ≥ 2; 0 where all have one direction, 1 at right angles.

    Of unit vectors, the mean over the N(N − 1) ordered pairs of 1 − uᵢ·uⱼ is (1 − ‖ū‖²)·N / (N − 1).
    """
    units = unit(vectors)
    count = len(units)
    # By differences from the mean: of vectors that are nearly the same, 1 − ‖ū‖² would be rounding.
    spread = (units - units.mean(dim=0)).square().sum().item() / count
    return spread * count / (count - 1)


def measure_variety(
    config: EvaluationConfig, variety: VarietyConfig, bundle: Bundle, on_progress: Progress | None = None
) -> dict[str, Any]:
    """The table ``variety``: mean cosine distances between embeddings of one caption.

    By prior, over all captions: ``named``, where the caption says style and background, and ``open``, where
    it says nothing but the concept; ``between`` is the distance between embeddings of the concepts, one seed
    each, for the scale. ``real`` has the distance between the true pictures of a concept in all styles.
    """
    pictograms = load_pictograms(config.data)
    prompts = draw_prompts(pictograms, variety.captions, config.seed)
    texts = {
        "named": [prompt.caption for prompt in prompts],
        "open": [with_article(prompt.pictogram.concept) for prompt in prompts],
    }
    found: dict[str, Any] = {}
    for prior in config.priors:
        options = config.generate_options(prior)
        total, done = 2 * len(prompts), 0
        distances: dict[str, list[float]] = {kind: [] for kind in texts}
        firsts = []
        for kind, captions in texts.items():
            for caption in captions:
                assert bundle.clip is not None  # asked for before
                text = encode_text(bundle.clip, [caption] * variety.seeds)
                vectors = sample_prior(bundle, text, config.seed, options).vectors.cpu()
                distances[kind].append(mean_distance(vectors))
                if kind == "open":
                    firsts.append(vectors[0])
                done += 1
                if on_progress is not None:
                    on_progress(f"variety, prior {prior}", done, total)
        found[prior] = {kind: sum(each) / len(each) for kind, each in distances.items()}
        found[prior]["between"] = mean_distance(torch.stack(firsts))
    return {
        "captions": len(prompts),
        "seeds": variety.seeds,
        "priors": found,
        "real": {"open": _between_styles(bundle, config, prompts)},
    }


def _between_styles(bundle: Bundle, config: EvaluationConfig, prompts: list[Prompt]) -> float | None:
    """Mean distance of the embeddings of a concept's true pictures on white; None where all have one only."""
    assert bundle.clip is not None and bundle.decoder is not None
    plain = [replace(prompt, background=WHITE_BACKGROUND) for prompt in prompts]
    every = load_pictograms(config.data, held_out=None)
    pictures, owners = true_pictures(plain, every, bundle.decoder.picture_size)
    vectors = encode_images(bundle.clip, pictures).vectors.cpu()
    several = [vectors[owners == index] for index in range(len(plain))]
    found = [mean_distance(each) for each in several if len(each) > 1]
    return sum(found) / len(found) if found else None
