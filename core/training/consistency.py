"""Image embeddings that say the same of a picture whatever lies behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import POSITIVE, require_ranges
from ..data.captions import WHITE, Background, plain_backgrounds
from ..data.rendering import composite
from ..embeddings.space import Embedding
from .frozen_clip import FrozenClip, load_frozen_clip
from .whitening import WhitenedError

OFFSET_PICTURES = 512
_CHUNK = 256


@dataclass(frozen=True)
class ConsistencyConfig:
    """What an image tower learns from its predecessor besides the captions.

    Attributes:
        teacher: file of a trained CLIP stage whose embeddings of pictures on white stay what they are.
        weight: of this error beside the contrastive loss.
        ridge: of the :class:`WhitenedError`.
    """

    teacher: str
    weight: float = 1.0
    ridge: float = 0.01

    def __post_init__(self) -> None:
        require_ranges(self, "consistency", weight=POSITIVE, ridge=POSITIVE)


class BackgroundConsistency:
    """Error of image embeddings against the teacher's of the same pictures on white, plus their backgrounds'.

    A contrastive loss on pictures over coloured backgrounds lets colour and shape mix: the same cat on orange
    and on blue gets embeddings that differ in all that tells a cat from a dog, and priors and decoders have
    to learn each cat anew on each colour. The offset of a background is the mean, over many pictures, of the
    difference that it makes to the teacher's embedding, so that what the teacher's pupils know of colours
    stays true on average.
    """

    def __init__(self, config: ConsistencyConfig, pixels: Tensor) -> None:
        """Args:
        pixels: [N, 4, S, S] uint8 RGBA of the training pictures.

        Raises:
            ValueError: the teacher is not there or is not a CLIP stage.
        """
        self.weight = config.weight
        teacher = load_frozen_clip(Path(config.teacher))
        self.space = teacher.space
        self._on_white = on_white = _embed(teacher, pixels, WHITE)  # [N, D]
        some = torch.arange(len(pixels))[:: max(1, len(pixels) // OFFSET_PICTURES)]
        self._offsets = {
            background.top: (_embed(teacher, pixels[some], background.top) - on_white[some]).mean(dim=0)
            for background in plain_backgrounds()
        }
        standardised = Embedding(self.space.standardise(on_white), self.space)
        self._error = WhitenedError(standardised, config.ridge)

    def targets(self, indices: Tensor, backgrounds: Sequence[Background]) -> Tensor:
        """[B] indices of pictures and their backgrounds → [B, D]. A gradient has its ends' mean offset."""
        offsets = torch.stack([(self._offsets[b.top] + self._offsets[b.bottom]) / 2 for b in backgrounds])
        return self.space.in_convention(self._on_white[indices] + offsets)

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """z_i of the pupil and targets, [B, D] in the convention of the space → weighted error, a scalar."""
        error = self._error(self.space.standardise(image.float()), self.space.standardise(target))
        return self.weight * error.mean()


def _embed(clip: FrozenClip, pixels: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """[N, 4, S, S] uint8 on one colour → z_i [N, D]."""
    chunks = []
    for chunk in pixels.split(_CHUNK):
        plane = torch.tensor([colour]).expand(len(chunk), -1)
        chunks.append(clip.encode_images(composite(chunk, plane, plane)))
    return torch.cat(chunks)
