"""R-precision: does a picture lead back to its own caption among distractors?"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...precision import double


def draw_candidates(items: int, candidates: int, seed: int) -> Tensor:
    """For each item its own index, in column 0, and those of ``candidates`` − 1 others, without repeats.

    Returns:
        [items, candidates] int64; row i depends on seed, i and the two sizes only.

    Raises:
        ValueError: more candidates than items, or fewer than two.
    """
    if not 2 <= candidates <= items:
        raise ValueError(f"candidates is {candidates}; expected 2 to {items}, the number of prompts")
    rows = []
    for item in range(items):
        others = random.Random(f"{seed}/{item}").sample(range(items - 1), candidates - 1)
        rows.append([item, *(other + (other >= item) for other in others)])
    return torch.tensor(rows)


def draw_candidates_apart(labels: Sequence[str], candidates: int, seed: int) -> Tensor:
    """As :func:`draw_candidates`, the others being items of other labels than the item's own.

    Raises:
        ValueError: an item has fewer than ``candidates`` − 1 of them.
    """
    rows = []
    for item, own in enumerate(labels):
        others = [other for other, label in enumerate(labels) if label != own]
        if len(others) < candidates - 1:
            raise ValueError(
                f"candidates is {candidates}; expected at most {len(others) + 1}: of {len(labels)} prompts "
                f"{len(others)} are of other concepts than {own!r}"
            )
        rows.append([item, *random.Random(f"{seed}/{item}").sample(others, candidates - 1)])
    return torch.tensor(rows)


def clip_hits(images: Tensor, captions: Tensor, candidates: Tensor) -> Tensor:
    """The judge finds the right caption: its cosine similarity to the picture exceeds all the others.

    Args:
        images, captions: [N, D] CLIP embeddings of the pictures and of all captions, of any length.
        candidates: [N, C] indices of captions, the right one in column 0.

    Returns:
        [N] bool. A tie is a miss: a judge that gives everything the same score finds nothing.
    """
    similarity = F.normalize(double(images), dim=-1) @ F.normalize(double(captions), dim=-1).T  # [N, N]
    return first_is_best(similarity.gather(1, candidates.to(similarity.device)))


def pixel_hits(images: Tensor, renders: Tensor, candidates: Tensor, owners: Tensor | None = None) -> Tensor:
    """The true picture of the caption is the nearest in mean squared error among those of the candidates.

    Needs no learned judge, so nothing that was trained can flatter it.

    Args:
        images: [N, 3, H, W] in 0..1, to be judged.
        renders: [N, 3, H, W] in 0..1, the true picture of every caption.
        candidates: [N, C] indices of captions, the right one in column 0.
        owners: where captions have several true pictures, [M, 3, H, W]: [M], the caption of each. A caption
            is as far away as the nearest of its pictures.

    Returns:
        [N] bool. A tie is a miss.
    """
    # Differences, not dot products: two renders may differ by little.
    distances = torch.cdist(
        images.flatten(1).float(), renders.flatten(1).float(), compute_mode="donot_use_mm_for_euclid_dist"
    )  # [N, N], or [N, M]
    if owners is not None:
        nearest = distances.new_full((len(images), int(owners.max()) + 1), torch.inf)
        owners = owners.to(distances.device).expand_as(distances)
        distances = nearest.scatter_reduce(1, owners, distances, "amin")  # [N, N]
    return first_is_best(-distances.gather(1, candidates.to(distances.device)))


def first_is_best(scores: Tensor) -> Tensor:
    """[N, C] → [N] bool: column 0 is above all others."""
    return (scores[:, :1] > scores[:, 1:]).all(dim=1)
