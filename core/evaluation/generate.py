"""Captions → pictures, through the stages of a bundle, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..diffusion.samplers import SamplerStep, StepCallback
from ..embeddings.space import Embedding, TextFeatures
from ..pipelines.decode import DecodeOptions, decode
from ..pipelines.encode import encode_text
from ..pipelines.prior import PriorOptions, sample_diffusion_prior
from ..pipelines.upsample import UpsampleOptions, upsample
from ..stages import Bundle


@dataclass(frozen=True)
class GenerateOptions:
    """How captions become pictures.

    Attributes:
        prior: one of PRIORS.
        prior_options, decode_options, upsample_options: of the stages' samplers.
        upsamplers: how many of the bundle's upsamplers run, from the smallest on.
        batch_size: captions that go through the stages together; changes the pictures by rounding only.
    """

    prior: str = "diffusion"
    prior_options: PriorOptions = field(default_factory=PriorOptions)
    decode_options: DecodeOptions = field(default_factory=DecodeOptions)
    upsample_options: UpsampleOptions = field(default_factory=UpsampleOptions)
    upsamplers: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior {self.prior!r} is not known; choose one of {', '.join(PRIORS)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1")


def _diffusion(
    bundle: Bundle, text: TextFeatures, seed: int, options: GenerateOptions, callback: StepCallback | None
) -> Embedding:
    if bundle.prior is None or bundle.prior.diffusion is None:
        raise ValueError(f"bundle {bundle.name!r} has no diffusion prior; choose another prior or bundle")
    return sample_diffusion_prior(
        bundle.prior,
        text,
        seed=seed,
        batch_size=len(text),
        options=options.prior_options,
        callback=callback,
    )


def _none(
    bundle: Bundle, text: TextFeatures, seed: int, options: GenerateOptions, callback: StepCallback | None
) -> Embedding:
    """z_t as if it were z_i (unCLIP, section 5.1 and figure 8)."""
    return Embedding(text.pooled, text.space)


Prior = Callable[[Bundle, TextFeatures, int, GenerateOptions, "StepCallback | None"], Embedding]

PRIORS: dict[str, Prior] = {"diffusion": _diffusion, "none": _none}
"""Ways from B captions to B image embeddings, by name; row i is what seed + i gives alone."""


def picture_size(bundle: Bundle, upsamplers: int = 0) -> int:
    """Side of the pictures that :func:`generate` makes.

    Raises:
        ValueError: no decoder, or fewer upsamplers than asked for.
    """
    if bundle.decoder is None:
        raise ValueError(f"bundle {bundle.name!r} has no decoder; expected one to make pictures with")
    if not 0 <= upsamplers <= len(bundle.upsamplers):
        raise ValueError(
            f"upsamplers is {upsamplers}; expected 0 to {len(bundle.upsamplers)}, as many as bundle "
            f"{bundle.name!r} has"
        )
    size = bundle.decoder.network.config.image_size
    for stage in bundle.upsamplers[:upsamplers]:
        size *= stage.network.config.image_size // stage.low_size
    return size


def generate(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    seed: int,
    options: GenerateOptions = GenerateOptions(),
    on_progress: Callable[[float], None] | None = None,
) -> Tensor:
    """One picture for each caption; picture i is the one that seed + i gives alone.

    Args:
        on_progress: told after each step how many pictures are done, fractions of a batch included.

    Returns:
        [N, 3, S, S] float32 0..1 on the CPU.

    Raises:
        ValueError: a stage that the options need and the bundle lacks; no captions.
    """
    picture_size(bundle, options.upsamplers)
    if bundle.clip is None:
        raise ValueError(f"bundle {bundle.name!r} has no CLIP model; expected one to read captions with")
    if not captions:
        raise ValueError("captions: found none, expected at least one")
    stages = 2 + options.upsamplers
    parts = []
    for start in range(0, len(captions), options.batch_size):
        part = list(captions[start : start + options.batch_size])

        def at(stage: int, share: tuple[int, int] = (start, len(part))) -> StepCallback | None:
            return _told(on_progress, *share, stage, stages)

        text = encode_text(bundle.clip, part)
        embedding = PRIORS[options.prior](bundle, text, seed + start, options, at(0))
        pictures = decode(
            bundle.decoder,
            embedding,
            text,
            seed=seed + start,
            batch_size=len(part),
            options=options.decode_options,
            callback=at(1),
        )
        for index, stage in enumerate(bundle.upsamplers[: options.upsamplers]):
            pictures = upsample(
                stage,
                pictures,
                seed=seed + start,
                options=options.upsample_options,
                callback=at(2 + index),
            )
        parts.append(pictures.cpu())
    return torch.cat(parts)


def _told(
    on_progress: Callable[[float], None] | None, before: int, pictures: int, stage: int, stages: int
) -> StepCallback | None:
    """The step callback of one stage of a batch, in pictures done; all stages count the same."""
    if on_progress is None:
        return None

    def on_step(step: SamplerStep) -> None:
        on_progress(before + pictures * (stage + (step.index + 1) / step.total) / stages)

    return on_step
