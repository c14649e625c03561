"""How well pictures and captions go together, in the eyes of a CLIP model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings.space import TextFeatures, require_same_space
from ..networks.clip import ImageFit
from ..stages import ClipStage
from .encode import encode_images


@torch.no_grad()
def clip_scores(clip: ClipStage, image: Tensor, text: TextFeatures, *, fit: ImageFit = "crop") -> Tensor:
    """CLIP score: cosine similarity of each picture's embedding and its caption's (2104.08718, unscaled).

    Args:
        image: [B, 3, H, W] in 0..1, of any size.
        text: captions in the space of ``clip``: B of them, or one for all pictures.
        fit: what becomes of pictures that are not square, see ``ClipNetwork.encode_pixels``.

    Returns:
        [B] float32 on the CPU, in −1..1.

    Raises:
        ValueError: text of another CLIP model, another number of captions than pictures, or no pictures.
    """
    require_same_space("text", text.space, clip.space)
    vectors = encode_images(clip, image, fit=fit).vectors.cpu()  # [B, D]
    return cosines(vectors, text.expand(len(vectors)).pooled.cpu()).float()


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """[N, D], [N, D] → [N] float64 in −1..1: cosine of the angle between rows of the same number."""
    return F.cosine_similarity(first.double(), second.double(), dim=-1).clamp(-1, 1)
