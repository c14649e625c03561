"""Embeddings made weaker, stronger or noisier: a cloud of pictures around one.

Noise in the scaling of a prior, as Stable unCLIP adds it to the embeddings that it is trained on (Rombach et
al., ``noise_level``), but with a continuous level; here the decoder has not seen it and takes it for content.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..diffusion.noise import draw_noise, image_generators
from ..embeddings.batches import common_batch
from ..embeddings.space import Embedding


def augment(
    embedding: Embedding, strength: float = 1.0, noise_level: float = 0.0, *, seed: int = 0, repeat: int = 1
) -> Embedding:
    """z' = mean + std·(cos(πλ/2)·s·u + sin(πλ/2)·ε), u being z standardised: noise that keeps the variance.

    Without statistics of the space the noise has the length of the row. Strength and level at their defaults
    give the same bits.

    Args:
        embedding: [B, D].
        strength: s, 0 or more: 0 is what all pictures share, 1 the embedding, more exaggerates it.
        noise_level: λ within 0 to 1: 0 is none, 1 is noise alone.
        seed: of the first result; row r, copy k has seed + r·repeat + k.
        repeat: copies of each row, each with noise of its own.

    Returns:
        [B·repeat, D], copies of a row one after the other.

    Raises:
        ValueError: a value out of range, or a strength other than 1 where only directions count and no mean
            is known.
    """
    common_batch(repeat=repeat)
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is {strength}; expected 0 or more, 1 for no change")
    if not 0 <= noise_level <= 1:
        raise ValueError(f"noise_level is {noise_level}; expected 0 (none) to 1 (noise alone)")
    space = embedding.space
    if strength != 1 and space.mean is None and space.norm == "unit":
        raise ValueError(
            f"strength: embeddings of {space.id!r} have length 1 and their mean is not known, so that they "
            f"cannot be made weaker or stronger; leave it at 1, or load a bundle with statistics"
        )
    vectors = embedding.vectors.repeat_interleave(repeat, dim=0)
    if strength == 1 and noise_level == 0:
        return replace(embedding, vectors=vectors)
    standardised = space.standardise(vectors.float())  # [B·repeat, D]
    result = math.cos(math.pi / 2 * noise_level) * strength * standardised
    if noise_level > 0:
        noise = draw_noise(image_generators(seed, len(vectors)), (space.dim,), vectors.device)
        if space.mean is None and space.norm == "raw":
            noise = noise * standardised.square().mean(dim=-1, keepdim=True).sqrt()
        result = result + math.sin(math.pi / 2 * noise_level) * noise
    return replace(embedding, vectors=space.in_convention(space.unstandardise(result)).to(vectors.dtype))
