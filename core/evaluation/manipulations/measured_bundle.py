"""A bundle under measurement: it encodes, decodes and judges in batches, and tells how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...diffusion.samplers import SamplerStep, StepCallback
from ...embeddings.space import Embedding, TextFeatures
from ...pipelines.decode import decode
from ...pipelines.encode import encode_images, encode_text
from ...pipelines.generate import GenerateOptions, require_stages
from ...pipelines.options import spaced_schedule
from ...pipelines.prior import sample_diffusion_prior
from ...pipelines.zero_shot import zero_shot
from ...stages import Bundle
from ..quality.report import Progress
from .config import ManipulationsConfig


@dataclass(frozen=True, eq=False)
class Example:
    """Pictures [rows, columns, 3, S, S] in 0..1 to be looked at, and what is written at and below them."""

    name: str
    pictures: Tensor
    row_labels: list[str]
    column_labels: list[str]
    labels: list[list[str]]


class Counter:
    """Tells how much of a measure is done, in units of its own."""

    def __init__(self, on_progress: Progress | None, title: str, total: int) -> None:
        self.on_progress, self.title, self.total = on_progress, title, total
        self.done = 0

    def stage(self, units: int) -> StepCallback | None:
        """The step callback of the next sampling, which is so many units of work."""
        before = self.done
        self.done += units
        if self.on_progress is None:
            return None

        def on_step(step: SamplerStep) -> None:
            self.on_progress(self.title, before + units * (step.index + 1) / step.total, self.total)

        return on_step


class MeasuredBundle:
    """A bundle whose manipulations are measured.

    Raises:
        ValueError: the bundle lacks a stage that the config needs, or its decoder has fewer timesteps than
            there are steps of inversion.
    """

    def __init__(
        self, bundle: Bundle, config: ManipulationsConfig, on_progress: Progress | None = None
    ) -> None:
        prior = "diffusion" if config.text_diff.by_prior else "none"
        require_stages(bundle, GenerateOptions(prior, upsamplers=config.upsamplers))
        most = max(steps for _, each in config.inversion.curves() for steps in each)
        try:
            spaced_schedule(bundle.decoder.diffusion, most)
        except ValueError as error:
            raise ValueError(f"inversion: {error}") from None
        self.bundle, self.config, self.on_progress = bundle, config, on_progress
        conditioning = bundle.decoder.network.config.conditioning
        # Captions would tell what embeddings are to be asked for; some decoders cannot do without one.
        needs_caption = conditioning is not None and conditioning.null_text == "empty_caption"
        reader = bundle.decoder_text or bundle.clip
        self.text: TextFeatures | None = encode_text(reader, [""]) if needs_caption else None

    @property
    def size(self) -> int:
        return self.bundle.decoder.picture_size

    def counter(self, title: str, total: int) -> Counter:
        return Counter(self.on_progress, title, total)

    def encode(self, pictures: Tensor) -> Embedding:
        return encode_images(self.bundle.clip, pictures).to("cpu")

    def imagine(self, text: TextFeatures) -> Embedding:
        """What the diffusion prior imagines of each caption, from the noise of seed + i."""
        embedding = sample_diffusion_prior(
            self.bundle.prior, text, seed=self.config.seed, options=self.config.prior
        )
        return embedding.to("cpu")

    def batches(self, count: int) -> list[slice]:
        size = self.config.batch_size
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def decode(self, embedding: Embedding, counter: Counter, noise: Tensor | None = None) -> Tensor:
        """[N, D] → [N, 3, S, S] float32 in 0..1 on the CPU, one unit of the counter for each.

        Args:
            noise: [N, 3, S, S], the x_T of each; None for that of seed + i.
        """
        parts = []
        for rows in self.batches(len(embedding)):
            count = rows.stop - rows.start
            pictures = decode(
                self.bundle.decoder,
                replace(embedding, vectors=embedding.vectors[rows]),
                self.text,
                seed=self.config.seed + rows.start,
                batch_size=count,
                options=self.config.decoder,
                noise=None if noise is None else noise[rows],
                callback=counter.stage(count),
            )
            parts.append(pictures.cpu())
        return torch.cat(parts)

    def probabilities(self, embedding: Embedding, captions: Sequence[str]) -> Tensor:
        """[B, D] → [B, N]: zero-shot probabilities of N captions."""
        return zero_shot(self.bundle.clip, embedding, encode_text(self.bundle.clip, captions))
