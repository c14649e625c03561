"""Two captions share a picture of mini: each half shows its own, by mini's CLIP."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from unclip.core.api import load_bundle
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.regions import Region
from unclip.core.stages import Bundle

WORDS = [
    "apple",
    "banana",
    "panda",
    "fox",
    "pizza",
    "strawberry",
    "frog",
    "owl",
    "cookie",
    "carrot",
    "lemon",
    "cat",
    "dog",
    "tiger",
    "penguin",
    "whale",
    "mushroom",
    "cherries",
    "lion",
    "watermelon",
]


def halves_won(bundle: Bundle, pairs: int, steps: int) -> float:
    """The share of halves that CLIP finds closer to their own caption than to that of the other half."""
    drawn = random.Random(0)
    told = [[f"a flat {word}" for word in drawn.sample(WORDS, 2)] for _ in range(pairs)]
    texts = [encode_text(bundle.clip, [pair[side] for pair in told]) for side in range(2)]
    embeddings = [
        sample_diffusion_prior(bundle.prior, text, seed=side, options=PriorOptions(steps=15))
        for side, text in enumerate(texts)
    ]
    size = bundle.decoder.network.config.image_size
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    pictures = decode(
        bundle.decoder,
        None,
        seed=0,
        regions=[Region(half, each) for half, each in zip((mask, 1 - mask), embeddings, strict=True)],
        options=DecodeOptions(steps=steps, guidance_scale=2.0),
    )
    won = 0
    for side, half in enumerate(pictures.chunk(2, dim=-1)):
        seen = encode_images(bundle.clip, F.interpolate(half, (size, size), mode="bicubic").clamp(0, 1))
        scores = [F.cosine_similarity(seen.vectors, text.pooled) for text in (texts[side], texts[1 - side])]
        won += int((scores[0] > scores[1]).sum())
    return won / (2 * pairs)


def test_each_half_shows_its_own_caption() -> None:
    assert halves_won(load_bundle("mini"), pairs=8, steps=8) >= 0.8
