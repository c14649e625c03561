"""Who judges: a CLIP model, by captions, and a classifier of true pictures, by concepts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...data.pictograms import Pictogram
from ...networks.classifier import Classifier
from ...pipelines.encode import encode_images, encode_text
from ...stages import ClipStage
from .retrieval import first_is_best

_CHUNK = 64


class Judge(Protocol):
    """What scores pictures against captions: two encoders into one space."""

    def images(self, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1 → [N, D]."""

    def captions(self, captions: list[str]) -> Tensor:
        """N captions → [N, D]."""


@dataclass(frozen=True)
class ClipJudge:
    """A CLIP stage as the judge."""

    clip: ClipStage

    def images(self, pictures: Tensor) -> Tensor:
        return encode_images(self.clip, pictures).vectors

    def captions(self, captions: list[str]) -> Tensor:
        return encode_text(self.clip, captions).pooled


@dataclass(frozen=True, eq=False)
class ConceptJudge:
    """A classifier as the judge: it knows the concepts of true pictures and no captions."""

    network: Classifier

    def scores(self, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] in 0..1 → logits [N, classes] float32 on the CPU."""
        return torch.cat([self.network.score(chunk).cpu() for chunk in pictures.split(_CHUNK)])

    def classes_of(self, concepts: Sequence[str]) -> Tensor:
        """[N] int64, the class of each concept.

        Raises:
            ValueError: some that it does not know.
        """
        known = {name: index for index, name in enumerate(self.network.config.classes)}
        unknown = sorted({concept for concept in concepts if concept not in known})
        if unknown:
            raise ValueError(
                f"classifier: it does not know {len(unknown)} of the concepts in the data, such as "
                f"{unknown[0]!r}; train it on the same styles and groups, with held_out = true for held-out "
                f"pairs"
            )
        return torch.tensor([known[concept] for concept in concepts])

    def hits(self, pictures: Tensor, candidates: Sequence[Sequence[str]]) -> Tensor:
        """[N] bool: of the candidates, the first, right one has the best score. A tie is a miss.

        Args:
            pictures: [N, 3, H, W] in 0..1.
            candidates: concepts, all different, for each picture; the right one stands first.
        """
        scores = self.scores(pictures)  # [N, classes]
        return torch.tensor(
            [
                bool(first_is_best(row[self.classes_of(names)][None]))
                for row, names in zip(scores, candidates, strict=True)
            ]
        )


def concepts_by_group(pictograms: Sequence[Pictogram]) -> dict[str, list[str]]:
    """All concepts of each group, in order of the alphabet."""
    found: dict[str, set[str]] = {}
    for pictogram in pictograms:
        found.setdefault(pictogram.group, set()).add(pictogram.concept)
    return {group: sorted(concepts) for group, concepts in found.items()}


def draw_group_concepts(
    pictograms: Sequence[Pictogram], groups: Mapping[str, Sequence[str]], candidates: int, seed: int
) -> list[list[str]]:
    """For each pictogram its concept, and ``candidates`` − 1 others of its group, or all where it has fewer.

    Row i depends on seed, i, the pictogram and its group only.
    """
    rows = []
    for index, pictogram in enumerate(pictograms):
        others = [concept for concept in groups[pictogram.group] if concept != pictogram.concept]
        rng = random.Random(f"{seed}/{index}/{pictogram.key}")
        rows.append([pictogram.concept, *rng.sample(others, min(candidates - 1, len(others)))])
    return rows
