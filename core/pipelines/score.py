"""How well pictures and captions go together, and how pictures differ, in the eyes of a CLIP model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings.space import Embedding, TextFeatures, require_text_of
from ..networks.clip import ImageFit
from ..precision import double
from ..stages import ClipStage
from .encode import encode_images

ALL = "all pictures"


@dataclass(frozen=True)
class GroupScore:
    """What CLIP says of a group of pictures.

    Attributes:
        name: of the group.
        score: mean CLIP score, −1..1.
        diversity: see :func:`diversity`; None for a single picture.
    """

    name: str
    score: float
    diversity: float | None


@dataclass(frozen=True, eq=False)
class PictureScores:
    """CLIP scores of pictures, [B] float32 on the CPU, and what their groups have in common."""

    scores: Tensor
    groups: tuple[GroupScore, ...]

    @property
    def diversity(self) -> float:
        """The mean of the groups of at least two pictures; 0 where there is none."""
        found = [group.diversity for group in self.groups if group.diversity is not None]
        return sum(found) / len(found) if found else 0.0


@torch.no_grad()
def score_pictures(
    clip: ClipStage,
    image: Tensor,
    text: TextFeatures,
    *,
    groups: Sequence[str] = (),
    fit: ImageFit = "crop",
    callback: Callable[[int], object] | None = None,
) -> PictureScores:
    """Fidelity and diversity, by group: what guidance trades for each other (unCLIP, section 5.3).

    Args:
        image: [B, 3, H, W] in 0..1, of any size.
        text: captions in the space of ``clip``: B of them, one for all pictures, or fewer that go into B:
            each for as many pictures, one after the other.
        groups: names of the pictures' groups, one for each picture, or fewer that take turns: the scales of a
            guidance sweep, whose pictures are all scales of one embedding after the other. Pictures with
            equal names are one group; without names, all are.
        fit: what becomes of pictures that are not square, see ``ClipNetwork.encode_pixels``.
        callback: told how many pictures are encoded, after each part of them.

    Returns:
        The groups are in the order of their first pictures.

    Raises:
        ValueError: see :func:`clip_scores`; names that do not go round evenly.
    """
    names = list(groups) or [ALL]
    if len(image) % len(names):
        raise ValueError(
            f"groups: found {len(names)} names for {len(image)} pictures; expected one for each, or fewer "
            f"that take turns, of which {len(image)} is a multiple"
        )
    require_text_of("text", text, clip.space)
    embedding = encode_images(clip, image, fit=fit, callback=callback).to("cpu")
    scores = _scores(embedding, text)
    members: dict[str, list[int]] = {}
    for index in range(len(image)):
        members.setdefault(names[index % len(names)], []).append(index)
    found = (
        GroupScore(name, scores[rows].mean().item(), diversity(embedding.vectors[rows]))
        for name, rows in members.items()
    )
    return PictureScores(scores, tuple(found))


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
    require_text_of("text", text, clip.space)
    return _scores(encode_images(clip, image, fit=fit).to("cpu"), text)


def diversity(vectors: Tensor) -> float | None:
    """Mean cosine distance 1 − cos of all pairs: 0 where all are the same; None where there is no pair.

    With unit vectors u_i, Σ_{i≠j} u_i·u_j = ‖Σ u_i‖² − n, so that no pair has to be looked at.

    Args:
        vectors: [N, D].
    """
    count = len(vectors)
    if count < 2:
        return None
    total = F.normalize(double(vectors), dim=-1).sum(dim=0).square().sum().item()
    return max(0.0, 1 - (total - count) / (count * (count - 1)))


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """[N, D], [N, D] → [N] float64 in −1..1: cosine of the angle between rows of the same number."""
    return F.cosine_similarity(double(first), double(second), dim=-1).clamp(-1, 1)


def _scores(embedding: Embedding, text: TextFeatures) -> Tensor:
    """[B] float32, of embeddings on the CPU."""
    return cosines(embedding.vectors, text.expand(len(embedding)).pooled.cpu()).float()
