"""Measures of a folder of pictures, whoever made them: CLIP score, CMMD and FID."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import POSITIVE, require_ranges
from ...data.batches import Skipped
from ...data.decoding import open_picture, square, upright
from ...data.parts import Part, read_parts
from ...data.process import ALONE, Process, at_first
from ...data.settings import DataConfig
from ...data.sources import PictureSource
from ...pipelines.encode import encode_images, encode_text
from ...pipelines.score import cosines
from ...stages import ClipStage
from .distribution import cmmd, frechet_distance
from .inception import FEATURES, InceptionFeatures, fit_inception

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judges:
    """What looks at the pictures, in float32 on one device.

    Attributes:
        clip: for CLIP score and CMMD; None for neither.
        inception: for FID; None for none.
    """

    clip: ClipStage | None = None
    inception: InceptionFeatures | None = None

    def __post_init__(self) -> None:
        if self.clip is None and self.inception is None:
            raise ValueError(
                "nobody judges: name a CLIP model (--clip), Inception's weights (--inception) or both"
            )


@dataclass(frozen=True, eq=False)
class PictureSet:
    """What judges see in a set of pictures; rows in the order of the pictures, those that fail left out.

    Attributes:
        images: CLIP embeddings [N, D], or [N, 0] without a CLIP model.
        captions: those of the captions [N, D]; of pictures without one, anything.
        captioned: [N] bool, which pictures have a caption.
        features: Inception's [N, 2048], or [N, 0].
        skipped: names of what cannot be used, and why.
    """

    images: Tensor
    captions: Tensor
    captioned: Tensor
    features: Tensor
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.captioned)


@dataclass(frozen=True)
class Looking:
    """How pictures are looked at.

    Attributes:
        batch_size: pictures at once; always the same ones, so that numbers do not depend on who does it.
        workers: processes that read and decode, for each of the run's.
        device: the judges'.
    """

    device: torch.device
    batch_size: int = 32
    workers: int = 0

    def __post_init__(self) -> None:
        require_ranges(self, "", batch_size=POSITIVE)


def measure(pictures: PictureSet, reference: PictureSet | None, judges: Judges) -> dict[str, Any]:
    """The measures that the judges and the sets allow, as JSON values.

    ``clip_score`` is the mean cosine of pictures and their own captions (2104.08718, unscaled), over those
    that have one; ``cmmd`` and ``fid`` compare with the reference.

    Raises:
        ValueError: nothing can be measured: no captions and no reference.
    """
    found: dict[str, Any] = {"pictures": len(pictures), "skipped": len(pictures.skipped)}
    if reference is not None:
        found["reference"] = {"pictures": len(reference), "skipped": len(reference.skipped)}
    if judges.clip is not None and pictures.captioned.any():
        kept = pictures.captioned
        found["captions"] = int(kept.sum())
        found["clip_score"] = cosines(pictures.images[kept], pictures.captions[kept]).mean().item()
    if judges.clip is not None and reference is not None:
        found["cmmd"] = cmmd(reference.images, pictures.images)
    if judges.inception is not None and reference is not None:
        found["fid"] = frechet_distance(reference.features, pictures.features)
        found["inception"] = judges.inception.variant
    if not found.keys() & {"clip_score", "cmmd", "fid"}:
        raise ValueError(
            "nothing can be measured: CMMD and FID need pictures to compare with (--reference), the CLIP "
            "score captions beside the pictures and a CLIP model (--clip)"
        )
    return found


@torch.no_grad()
def look(
    source: PictureSource,
    data: DataConfig,
    judges: Judges,
    how: Looking,
    process: Process = ALONE,
    on_progress: Progress | None = None,
) -> PictureSet | None:
    """What the judges see in the pictures of a source, captions or none.

    Each process looks at every ``process.world``-th batch; the first one gets all of it, the others None.

    Args:
        data: where the pictures are, and which of them count (``min_side``, ``max_aspect``).
        on_progress: told the folder, this process's batches that are done, and their number.

    Raises:
        ValueError: no pictures that can be used.
    """
    size = how.batch_size
    parts = [range(first, min(first + size, len(source))) for first in range(0, len(source), size)]
    own = range(process.rank, len(parts), process.world)
    prepare = partial(_prepared, config=data, side=_side(judges.clip), whole=judges.inception is not None)
    seen: list[tuple[int, PictureSet]] = []
    for part, number in zip(
        read_parts(source, prepare, [parts[n] for n in own], how.workers), own, strict=True
    ):
        seen.append((number, _seen(part, judges, how.device)))
        if on_progress is not None:
            on_progress(str(data.path), len(seen), len(own))
    gathered = at_first(process, seen)
    if gathered is None:
        return None
    sets = [found for _, found in sorted(gathered, key=lambda pair: pair[0])]
    whole = PictureSet(
        *(
            torch.cat([getattr(each, name) for each in sets])
            for name in ("images", "captions", "captioned", "features")
        ),
        tuple(each for part in sets for each in part.skipped),
    )
    if not len(whole):
        key, reason = whole.skipped[0]
        raise ValueError(f"{data.path}: of {len(source)} pictures none can be used; {key}: {reason}")
    return whole


def _prepared(
    content: bytes, config: DataConfig, side: int | None, whole: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What CLIP is shown of a picture, as ``unclip embed`` shows it, and what Inception is."""
    square_of = None
    if side is not None:
        square_of = square(
            open_picture(content, config.min_side, config.max_aspect), side, "center", random.Random(0)
        )
    all_of = None
    if whole:
        pixels = torch.from_numpy(
            np.array(upright(open_picture(content, config.min_side, config.max_aspect)))
        )
        all_of = fit_inception(pixels.permute(2, 0, 1).float() / 255).numpy()
    return square_of, all_of


def _side(clip: ClipStage | None) -> int | None:
    if clip is None:
        return None
    vision = getattr(clip.network.config, "vision", None)
    if vision is None or getattr(clip.network.config, "text", None) is None:
        raise ValueError(
            f"{clip.source or clip.space.id}: has not both an image and a text encoder; choose a whole "
            f"CLIP model"
        )
    return vision.image_size


def _seen(part: Part, judges: Judges, device: torch.device) -> PictureSet:
    images = captions = torch.zeros(len(part.rows), 0)
    features = torch.zeros(len(part.rows), 0 if judges.inception is None else FEATURES)
    if judges.clip is not None:
        images = captions = torch.zeros(len(part.rows), judges.clip.space.dim)
    if part.rows and judges.clip is not None:
        squares = torch.from_numpy(np.stack([row[0] for row in part.rows])).to(device)
        images = encode_images(judges.clip, squares.permute(0, 3, 1, 2).float() / 255).vectors.cpu()
        if any(part.captions):
            captions = encode_text(judges.clip, part.captions).pooled.cpu()
    if part.rows and judges.inception is not None:
        features = judges.inception(
            torch.from_numpy(np.stack([row[1] for row in part.rows])).to(device)
        ).cpu()
    captioned = torch.tensor([bool(caption) for caption in part.captions], dtype=torch.bool)
    return PictureSet(images, captions, captioned, features, tuple(part.skipped))
