"""Embeddings that are noise while the picture still is: pictures of one embedding differ more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import SupportsIndex

from torch import Tensor

from ..diffusion.annealing import annealed, annealing
from ..diffusion.noise import draw_noise, image_generators, require_seed
from ..diffusion.schedule import Schedule
from ..embeddings.space import Embedding, EmbeddingSpace
from .rows import to_batch

_SEED = 0xCAD5
"""Added to a seed for this noise: what the sampler draws stays as it is without."""


@dataclass(frozen=True, eq=False)
class EmbeddingAnnealing:
    """Condition annealing (CADS, 2310.17347) of the embeddings of a batch.

    Attributes:
        gamma: of each step, see ``diffusion.annealing``.
        noise: [B, D] of each step in which gamma is below 1.
        space: of the decoder, with the statistics by which it standardises embeddings.
    """

    gamma: tuple[float, ...]
    noise: dict[int, Tensor]
    space: EmbeddingSpace

    def changes(self, step: int) -> bool:
        return step in self.noise

    def of(self, embedding: Embedding, step: int) -> Embedding:
        """The embedding [1 or B, D] as this step sees it, [B, D].

        In the scale of a prior; without statistics, components have a root mean square of 1 there.
        """
        if not self.changes(step):
            return embedding
        space, noise = embedding.space, self.noise[step]
        if self.space.mean is not None and self.space.norm == space.norm:
            space = self.space  # an embedding need not bring statistics along
        standardised = space.standardise(to_batch(embedding.vectors.float().cpu(), len(noise)))
        size = standardised.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
        size = size if space.mean is None else size.new_ones(1)
        mixed = annealed(standardised / size, noise, self.gamma[step]) * size
        return replace(embedding, vectors=space.in_convention(space.unstandardise(mixed)))


def embedding_annealing(
    schedule: Schedule, until: float, space: EmbeddingSpace, seed: SupportsIndex, batch: int
) -> EmbeddingAnnealing | None:
    """The annealing of a batch; picture i has noise of its own, that of seed + i. None where it is off.

    Args:
        until: share of the way from which on the embedding is whole; 0 is off.
        space: of the decoder.
    """
    gamma = tuple(annealing(schedule, until).tolist())
    generators = image_generators(require_seed(seed) + _SEED, batch)
    steps = [step for step in reversed(range(len(gamma))) if gamma[step] < 1]
    noise = {step: draw_noise(generators, (space.dim,)) for step in steps}
    return EmbeddingAnnealing(gamma, noise, space) if noise else None
