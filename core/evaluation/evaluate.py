"""The whole evaluation of a bundle: prompts, pictures by every prior, measures of them and of real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..pipelines.decode import DecodeOptions
from ..pipelines.encode import encode_images, encode_text
from ..pipelines.prior import PriorOptions
from ..pipelines.upsample import UpsampleOptions
from ..stages import Bundle, ClipStage
from ..training.captions import named_colour, plain_backgrounds
from ..training.data import DataConfig, load_pictograms
from .colour import background_hits
from .distribution import NEIGHBOURS, cmmd, precision_recall, unit
from .generate import GenerateOptions, generate, picture_size
from .prompts import Prompt, draw_prompts, render_prompts
from .retrieval import clip_hits, draw_candidates, pixel_hits
from .statistics import Proportion

Split = Literal["trained", "held_out"]


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of ``unclip eval``.

    Attributes:
        bundle: folder of the bundle that is evaluated.
        data: the pictograms that it was trained on; their held-out pairs are the split ``"held_out"``.
        judge: file of the CLIP stage that judges; None for the bundle's own, which the generator was trained
            against and which is therefore lenient.
        splits, priors: what is evaluated, each with each.
        prompts: captions for each split, one picture for each.
        candidates: captions among which the right one is to be found, itself included.
        reference: real pictures, none of them a prompt's own, against which sets of pictures are compared.
        neighbours: k of precision and recall.
        seed: of prompts and candidates; picture i is generated from seed + i.
        samples: how many pictures of each split and prior are handed on to be looked at.
        batch_size, upsamplers: see ``GenerateOptions``.
        precision: of the bundle's weights, ``"auto"``, ``"fp32"``, ``"fp16"`` or ``"bf16"``; the judge is
            always in fp32.
        prior, decoder, upsampler: how the stages are sampled.
    """

    bundle: str
    data: DataConfig
    judge: str | None = None
    splits: tuple[Split, ...] = ("trained", "held_out")
    priors: tuple[str, ...] = ("diffusion", "none")
    prompts: int = 200
    candidates: int = 100
    reference: int = 1000
    neighbours: int = NEIGHBOURS
    seed: int = 0
    samples: int = 64
    batch_size: int = 16
    upsamplers: int = 0
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    prior: PriorOptions = field(default_factory=PriorOptions)
    decoder: DecodeOptions = field(default_factory=DecodeOptions)
    upsampler: UpsampleOptions = field(default_factory=UpsampleOptions)

    def __post_init__(self) -> None:
        if not 2 <= self.candidates <= self.prompts:
            raise ValueError(
                f"candidates is {self.candidates}; expected 2 to the number of prompts, {self.prompts}"
            )
        if not self.splits:
            raise ValueError("splits is empty; expected trained, held_out or both")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; expected at least 1")
        smallest = min(self.prompts, self.reference)
        if not 1 <= self.neighbours < smallest:
            raise ValueError(
                f"neighbours is {self.neighbours}; expected 1 to less than prompts and reference, {smallest}"
            )
        for name in self.priors:
            self.generate_options(name)  # says so where a name or the batch size is wrong

    def generate_options(self, prior: str) -> GenerateOptions:
        return GenerateOptions(
            prior, self.prior, self.decoder, self.upsampler, self.upsamplers, self.batch_size
        )


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


@dataclass(frozen=True)
class Samples:
    """The first pictures [N, 3, S, S] in 0..1 of a split that a prior led to, and their captions."""

    split: Split
    prior: str
    captions: list[str]
    pictures: Tensor


@dataclass(frozen=True)
class Evaluation:
    """``results`` are plain JSON values, see :func:`evaluate`."""

    results: dict[str, Any]
    samples: list[Samples]


@torch.no_grad()
def evaluate(
    config: EvaluationConfig,
    bundle: Bundle,
    judge: Judge,
    on_progress: Callable[[str, float, int], None] | None = None,
) -> Evaluation:
    """Measure a bundle; the same config, weights and machine give the same numbers.

    Results are by split: the number of pictograms and prompts; ``real``, the measures of the prompts' true
    pictures: the best that R-precision and the background can show, and the floor of CMMD; and ``priors``,
    the measures of the pictures generated with each prior. Two splits have different references, so their
    CMMD, precision and recall are each to be read against their own ``real``.

    Args:
        bundle: its networks on the device and in the type in which they are to run.
        on_progress: told title, pictures done (with fractions) and their number.

    Raises:
        ValueError: too few pictograms for the prompts and the reference, or a stage that the bundle lacks.
    """
    size = picture_size(bundle, config.upsamplers)
    results: dict[str, Any] = {}
    samples: list[Samples] = []
    for split in config.splits:
        pictograms = load_pictograms(config.data, held_out=split == "held_out")
        truth = _Truth(
            config, draw_prompts(pictograms, config.prompts + config.reference, config.seed), judge, size
        )
        captions = [prompt.caption for prompt in truth.prompts]
        results[split] = {
            "pictograms": len(pictograms),
            "prompts": len(captions),
            "real": truth.measure(truth.renders),
            "priors": {},
        }
        for prior in config.priors:
            title = f"{split.replace('_', '-')}, prior {prior}"
            pictures = generate(
                bundle,
                captions,
                seed=config.seed,
                options=config.generate_options(prior),
                on_progress=_titled(on_progress, title, len(captions)),
            )
            results[split]["priors"][prior] = truth.measure(pictures)
            shown = slice(config.samples)
            # A copy: a view would keep all the pictures in memory.
            samples.append(Samples(split, prior, captions[shown], pictures[shown].clone()))
    return Evaluation(results, samples)


class _Truth:
    """The right answers of a split, and what pictures are measured against."""

    def __init__(self, config: EvaluationConfig, drawn: list[Prompt], judge: Judge, size: int) -> None:
        self.config, self.judge = config, judge
        self.prompts = drawn[: config.prompts]
        self.renders = render_prompts(self.prompts, size)  # [N, 3, S, S]
        self.candidates = draw_candidates(config.prompts, config.candidates, config.seed)  # [N, C]
        self.captions = judge.captions([prompt.caption for prompt in self.prompts])  # [N, D]
        reference = drawn[config.prompts :]
        self.reference = unit(judge.images(render_prompts(reference, size)))  # [R, D]

    def measure(self, pictures: Tensor) -> dict[str, Any]:
        """All measures of one picture [N, 3, S, S] for each prompt."""
        embeddings = self.judge.images(pictures)  # [N, D]
        similar = precision_recall(self.reference, unit(embeddings), self.config.neighbours)
        backgrounds = [prompt.background.name for prompt in self.prompts]
        hits = {
            "r_precision_clip": clip_hits(embeddings, self.captions, self.candidates),
            "r_precision_pixels": pixel_hits(pictures, self.renders, self.candidates),
            "background": background_hits(pictures, backgrounds, _PALETTE, "mean"),
            "background_median": background_hits(pictures, backgrounds, _PALETTE, "median"),
        }
        return {
            **{name: Proportion.of(found).to_json() for name, found in hits.items()},
            "cmmd": cmmd(self.reference, embeddings),
            "precision": similar.precision,
            "recall": similar.recall,
        }


_PALETTE = {background.name: named_colour(background.name) for background in plain_backgrounds()}


def _titled(
    on_progress: Callable[[str, float, int], None] | None, title: str, total: int
) -> Callable[[float], None] | None:
    if on_progress is None:
        return None
    return lambda done: on_progress(title, done, total)
