"""The whole evaluation of a bundle: prompts, pictures by every prior, measures of them and of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...data.batches import load_pictograms
from ...data.captions import named_colour, plain_backgrounds
from ...embeddings.space import Embedding
from ...pipelines.generate import (
    GenerateOptions,
    generate_with_embeddings,
    picture_size,
    prior_guidance,
    require_stages,
    with_prior_guidance,
)
from ...pipelines.score import cosines
from ...stages import Bundle
from ..statistics import Proportion
from .binding import BindingEvaluation
from .colour import background_hits
from .config import EvaluationConfig, Split
from .distribution import cmmd, precision_recall, unit
from .groups import GroupedEvaluation
from .judges import ConceptJudge, Judge, concepts_by_group, draw_group_concepts
from .prompts import Prompt, draw_prompts, render_prompts
from .report import Evaluation, Progress, Samples
from .retrieval import clip_hits, draw_candidates, pixel_hits
from .sharpness import measure_sharpness
from .variety import measure_variety


@torch.no_grad()
def evaluate(
    config: EvaluationConfig,
    bundle: Bundle,
    judge: Judge,
    on_progress: Progress | None = None,
    classifier: ConceptJudge | None = None,
) -> Evaluation:
    """Measure a bundle; the same config, weights and machine give the same numbers.

    Results are by split: the number of pictograms and prompts; ``real``, the measures of the prompts' true
    pictures: the best that R-precision and the background can show, and the floor of CMMD; and ``priors``,
    the measures of the pictures generated with each prior. Two splits have different references, so their
    CMMD, precision and recall are each to be read against their own ``real``.

    With guidance scales, ``sweeps`` hold for ``decoder`` and ``prior``, whichever's scale varies, a list of
    measures by prior, each with its ``guidance_scale``; and the number of ``prompts`` and the ``real`` that
    they are to be read against, because the sets are smaller.

    With a classifier, ``r_precision_classifier`` says how often it finds the right concept among those of
    the same group. Further tables that the config asks for: ``groups``, see
    :meth:`GroupedEvaluation.measure`; ``variety``, see :func:`measure_variety`; ``sharpness``, see
    :func:`measure_sharpness`; ``binding``, see :meth:`BindingEvaluation.measure`.

    Args:
        bundle: its networks on the device and in the type in which they are to run.
        on_progress: told title, pictures done (with fractions) and their number.

    Raises:
        ValueError: too few pictograms for the prompts and the reference, a stage that the bundle lacks, or
            concepts that the classifier lacks; all before anything is generated.
    """
    for prior in config.priors:
        require_stages(bundle, config.generate_options(prior))
    drawn: dict[Split, tuple[int, list[Prompt]]] = {}
    for split in config.splits:
        pictograms = load_pictograms(config.data, held_out=split == "held_out")
        prompts = draw_prompts(pictograms, config.prompts + config.reference, config.seed)
        drawn[split] = len(pictograms), prompts
    grouped = None
    if config.groups is not None:
        grouped = GroupedEvaluation(config, config.groups, bundle, judge, classifier, on_progress)
    together = None
    if config.binding is not None:
        together = BindingEvaluation(config, config.binding, bundle, classifier, on_progress)
    concepts = _Concepts(config, classifier)
    if config.sharpness is not None:
        picture_size(bundle, config.sharpness.upsamplers)  # which says so where there are fewer

    results: dict[str, Any] = {}
    samples: list[Samples] = []
    for split, (count, prompts) in drawn.items():
        truth = _Truth(config, prompts, judge, picture_size(bundle, config.upsamplers), concepts)
        results[split] = {
            "pictograms": count,
            "prompts": config.prompts,
            "real": truth.measure(truth.renders),
            "priors": {},
        }
        if config.guidance_scales:
            few = config.guidance_scales.prompts
            results[split]["sweeps"] = {
                "prompts": few,
                "real": truth.measure(truth.renders[:few]),
                "decoder": {},
                "prior": {},
            }
        for prior in config.priors:
            run = _Run(config, bundle, truth, split, prior, on_progress)
            results[split]["priors"][prior] = truth.measure(run.pictures)
            for kind in ("decoder", "prior"):
                points = list(run.sweep(kind))
                if points:
                    results[split]["sweeps"][kind][prior] = points
            samples.append(run.samples())
    tables: dict[str, Any] = {}
    if grouped is not None:
        tables["groups"], shown = grouped.measure()
        samples += shown
    if config.variety is not None:
        tables["variety"] = measure_variety(config, config.variety, bundle, on_progress)
    if config.sharpness is not None:
        tables["sharpness"] = measure_sharpness(config, config.sharpness, bundle, on_progress)
    if together is not None:
        tables["binding"], shown = together.measure()
        samples += shown
    return Evaluation(results, samples, tables)


class _Concepts:
    """The classifier, if there is one, and the concepts that it tells apart."""

    def __init__(self, config: EvaluationConfig, classifier: ConceptJudge | None) -> None:
        self.config, self.classifier = config, classifier
        self.groups: dict[str, list[str]] = {}
        if classifier is not None and config.splits:
            self.groups = concepts_by_group(load_pictograms(config.data, held_out=None))
            classifier.classes_of([name for group in self.groups.values() for name in group])

    def candidates(self, prompts: list[Prompt]) -> list[list[str]]:
        """For each prompt its own concept, and others of its group; nothing without a classifier."""
        if self.classifier is None:
            return []
        pictograms = [prompt.pictogram for prompt in prompts]
        return draw_group_concepts(pictograms, self.groups, self.config.candidates, self.config.seed)

    def hits(self, pictures: Tensor, candidates: list[list[str]]) -> dict[str, Tensor]:
        if self.classifier is None:
            return {}
        return {"r_precision_classifier": self.classifier.hits(pictures, candidates)}


class _Truth:
    """The right answers of a split, and what pictures are measured against."""

    def __init__(
        self, config: EvaluationConfig, drawn: list[Prompt], judge: Judge, size: int, concepts: _Concepts
    ) -> None:
        self.config, self.judge, self.concepts = config, judge, concepts
        self.prompts = drawn[: config.prompts]
        self.texts = [prompt.caption for prompt in self.prompts]
        self.renders = render_prompts(self.prompts, size)  # [N, 3, S, S]
        self.candidates = draw_candidates(config.prompts, config.candidates, config.seed)  # [N, C]
        self.captions = judge.captions(self.texts)  # [N, D]
        self.names = concepts.candidates(self.prompts)
        reference = drawn[config.prompts :]
        self.reference = unit(judge.images(render_prompts(reference, size)))  # [R, D]

    def measure(self, pictures: Tensor) -> dict[str, Any]:
        """All measures of one picture [n, 3, S, S] for each of the first n prompts."""
        few = slice(len(pictures))
        embeddings = self.judge.images(pictures)  # [n, D]
        similar = precision_recall(self.reference, unit(embeddings), self.config.neighbours)
        backgrounds = [prompt.background.name for prompt in self.prompts[few]]
        hits = {
            **self.concepts.hits(pictures, self.names[few]),
            "r_precision_clip": clip_hits(embeddings, self.captions, self.candidates[few]),
            "r_precision_pixels": pixel_hits(pictures, self.renders, self.candidates[few]),
            "background": background_hits(pictures, backgrounds, _PALETTE, "mean"),
            "background_median": background_hits(pictures, backgrounds, _PALETTE, "median"),
        }
        return {
            **{name: Proportion.of(found).to_json() for name, found in hits.items()},
            "clip_score": cosines(embeddings, self.captions[few]).mean().item(),
            "cmmd": cmmd(self.reference, embeddings),
            "precision": similar.precision,
            "recall": similar.recall,
        }


class _Run:
    """The pictures of one split and prior: those of the main results first, then those of its sweeps."""

    def __init__(
        self,
        config: EvaluationConfig,
        bundle: Bundle,
        truth: _Truth,
        split: Split,
        prior: str,
        on_progress: Progress | None,
    ) -> None:
        self.config, self.bundle, self.truth = config, bundle, truth
        self.split, self.prior, self.on_progress = split, prior, on_progress
        self.options = config.generate_options(prior)
        self.done = 0
        self.total = len(truth.texts) + config.guidance_scales.prompts * sum(
            scale != self._own(kind) for kind in ("decoder", "prior") for scale in self._scales(kind)
        )
        self.pictures, self.embeddings = self._generate(len(truth.texts), self.options)

    def sweep(self, kind: str) -> Iterator[dict[str, Any]]:
        """Measures at each guidance scale of the decoder or the prior."""
        few = self.config.guidance_scales.prompts
        for scale in self._scales(kind):
            if scale == self._own(kind):
                pictures = self.pictures[:few]
            elif kind == "prior":
                pictures, _ = self._generate(few, with_prior_guidance(self.options, scale))
            else:
                decoder = replace(self.options.decode_options, guidance_scale=scale)
                known = replace(self.embeddings, vectors=self.embeddings.vectors[:few])
                pictures, _ = self._generate(few, replace(self.options, decode_options=decoder), known)
            yield {"guidance_scale": scale, **self.truth.measure(pictures)}

    def samples(self) -> Samples:
        shown = slice(self.config.samples)
        # A copy: a view would keep all the pictures in memory.
        return Samples(self.split, self.prior, self.truth.texts[shown], self.pictures[shown].clone())

    def _own(self, kind: str) -> float | None:
        """The guidance scale of the main results; None for a prior without guidance."""
        return prior_guidance(self.options) if kind == "prior" else self.options.decode_options.guidance_scale

    def _scales(self, kind: str) -> tuple[float, ...]:
        return () if self._own(kind) is None else getattr(self.config.guidance_scales, kind)

    def _generate(
        self, count: int, options: GenerateOptions, embeddings: Embedding | None = None
    ) -> tuple[Tensor, Embedding]:
        made = generate_with_embeddings(
            self.bundle,
            self.truth.texts[:count],
            seed=self.config.seed,
            options=options,
            embeddings=embeddings,
            on_progress=None if self.on_progress is None else self._tell,
        )
        self.done += count
        return made

    def _tell(self, pictures: float) -> None:
        title = f"{self.split.replace('_', '-')}, prior {self.prior}"
        self.on_progress(title, self.done + pictures, self.total)


_PALETTE = {background.name: named_colour(background.name) for background in plain_backgrounds()}
