"""The same pictures at several guidance scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..diffusion.samplers import StepCallback
from ..embeddings.space import Embedding, TextFeatures
from ..stages import DecoderStage
from .conditions import Conditions
from .decode import DecodeOptions, decode
from .rows import count_on


@torch.no_grad()
def sweep_guidance(
    decoder: DecoderStage,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    scales: Sequence[float],
    seed: int,
    options: DecodeOptions,
    noise: Tensor | None = None,
    negative_embedding: Embedding | None = None,
    negative_text: TextFeatures | None = None,
    hint: Tensor | None = None,
    weaker: DecoderStage | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Decode embeddings from the same noise at each guidance scale: fidelity against diversity.

    Picture [i, s] is the one that :func:`decode` makes of embedding i with seed + i and scale s.

    Args:
        embedding: [B, D], in the decoder's CLIP space; None for a decoder that takes none (GLIDE's).
        text, noise, negative_embedding, negative_text, hint, weaker: see :func:`decode`.
        scales: S guidance scales; they take the place of the one in ``options``.
        callback: called after each step, which count on through all scales. Its x0 has the pictures of the
            finished scales too.

    Returns:
        [B, S, 3, H, W] float32 in 0..1.

    Raises:
        ValueError: no scales, a negative one, or what :func:`decode` refuses.
    """
    if not scales:
        raise ValueError("scales: found none, expected at least one guidance scale")
    conditions = Conditions(embedding, text, negative_embedding, negative_text, hint)
    at_scales = [replace(options, guidance_scale=scale) for scale in scales]  # all, before one is painted
    pictures: list[Tensor] = []
    shown: list[Tensor] = []  # of the finished scales, as small as previews
    for index, own in enumerate(at_scales):
        pictures.append(
            decode(
                decoder,
                **vars(conditions),
                seed=seed,
                options=own,
                noise=noise,
                weaker=weaker,
                callback=count_on(callback, index, len(scales), shown),
            )
        )
        shown.append(F.avg_pool2d(pictures[-1], decoder.scale))
    return rearrange(pictures, "s b c h w -> b s c h w").contiguous()
