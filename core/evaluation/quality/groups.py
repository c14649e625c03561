"""Measures group by group, with captions of nothing but a concept among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.batches import load_pictograms
from ...data.captions import named_colour, plain_backgrounds
from ...data.pictograms import GROUPS, Pictogram
from ...pipelines.generate import generate_with_embeddings, picture_size
from ...pipelines.score import cosines
from ...stages import Bundle
from ..statistics import Proportion
from .colour import background_hits
from .config import EvaluationConfig, GroupsConfig
from .judges import ConceptJudge, Judge, concepts_by_group, draw_group_concepts
from .prompts import Prompt, draw_plain_prompts, draw_prompts, mixed, render_prompts, true_pictures
from .report import Progress, Samples
from .retrieval import clip_hits, draw_candidates_apart, pixel_hits

HELD_OUT = "held-out pairs"
_PALETTE = {background.name: named_colour(background.name) for background in plain_backgrounds()}


class GroupedEvaluation:
    """The prompts of every group, drawn when it is made; :meth:`measure` then paints and judges."""

    def __init__(
        self,
        config: EvaluationConfig,
        groups: GroupsConfig,
        bundle: Bundle,
        judge: Judge,
        classifier: ConceptJudge | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """See ``evaluate``.

        Raises:
            ValueError: too few pictograms, a group without any, or concepts that the classifier lacks.
        """
        self._config, self._groups, self._bundle = config, groups, bundle
        self._judge, self._classifier, self._on_progress = judge, classifier, on_progress
        self._size = picture_size(bundle, config.upsamplers)
        self._every = load_pictograms(config.data, held_out=None)
        self._concepts = concepts_by_group(self._every)
        trained = [each for each in self._every if not each.held_out]
        self._drawn = {
            name: self._draw([each for each in trained if each.group == name], groups.plain)
            for name in self._names(trained)
        }
        held_out = [each for each in self._every if each.held_out and each.group in self._drawn]
        if groups.held_out and held_out:
            # Another style is the point of these pairs, so that it is always named.
            self._drawn[HELD_OUT] = self._draw(held_out, plain=0.0)
        if classifier is not None:
            classifier.classes_of([name for group in self._drawn for name in self._concepts.get(group, ())])

    def measure(self) -> tuple[dict[str, Any], list[Samples]]:
        """The table, and the first pictures of each group.

        ``groups`` holds a row by group: the number of ``pictograms``, of ``prompts`` and of the ``plain``
        ones among them, ``real``, the measures of true pictures, and ``priors``, those of every prior.
        ``overall`` has the means over groups; ``held_out`` is the row of the held-out pairs of all groups,
        None where there is none.
        """
        samples: list[Samples] = []
        rows = {name: self._row(name, *drawn, samples) for name, drawn in self._drawn.items()}
        held_out = rows.pop(HELD_OUT, None)
        overall = {
            "real": _mean([row["real"] for row in rows.values()]),
            "priors": {
                prior: _mean([row["priors"][prior] for row in rows.values()]) for prior in self._config.priors
            },
        }
        facts = {"candidates": self._groups.candidates, "plain": self._groups.plain}
        return {**facts, "groups": rows, "overall": overall, "held_out": held_out}, samples

    def _names(self, trained: Sequence[Pictogram]) -> list[str]:
        there = {each.group for each in trained}
        names = self._groups.names or [name for name in GROUPS if name in there]
        lacking = [name for name in names if name not in there]
        if lacking:
            raise ValueError(
                f"groups.names: the data hold no pictograms of {', '.join(lacking)}; take such of "
                f"{', '.join(sorted(there))}, or change data.groups"
            )
        return list(names)

    def _draw(self, pictograms: list[Pictogram], plain: float) -> tuple[int, list[Prompt]]:
        count, seed = self._groups.prompts, self._config.seed
        few = round(plain * count)
        simple = draw_plain_prompts(pictograms, few, seed)
        return len(pictograms), mixed(simple, draw_prompts(pictograms, count - few, seed))

    def _row(
        self, name: str, pictograms: int, prompts: list[Prompt], samples: list[Samples]
    ) -> dict[str, Any]:
        config = self._config
        texts = [prompt.caption for prompt in prompts]
        truth = _Truth(self, prompts, texts)
        row: dict[str, Any] = {
            "pictograms": pictograms,
            "prompts": len(prompts),
            "plain": sum(prompt.plain for prompt in prompts),
            "real": truth.measure(render_prompts(prompts, self._size)),
            "priors": {},
        }
        title = name if name == HELD_OUT else f"group {name}"
        for prior in config.priors:

            def tell(done: float, what: str = f"{title}, prior {prior}") -> None:
                if self._on_progress is not None:
                    self._on_progress(what, done, len(texts))

            options = config.generate_options(prior)
            pictures, _ = generate_with_embeddings(
                self._bundle, texts, seed=config.seed, options=options, on_progress=tell
            )
            row["priors"][prior] = truth.measure(pictures)
            shown = slice(config.samples)
            samples.append(Samples(title.replace(" ", "-"), prior, texts[shown], pictures[shown].clone()))
        return row


class _Truth:
    """The right answers of a row."""

    def __init__(self, grouped: GroupedEvaluation, prompts: list[Prompt], texts: list[str]) -> None:
        config, groups = grouped._config, grouped._groups
        self.judge, self.classifier = grouped._judge, grouped._classifier
        self.captions = self.judge.captions(texts)  # [N, D]
        self.backgrounds = [prompt.background.name or "white" for prompt in prompts]
        self.renders, self.owners = true_pictures(prompts, grouped._every, grouped._size)  # [M, 3, S, S], [M]
        concepts = [prompt.pictogram.concept for prompt in prompts]
        self.candidates = draw_candidates_apart(concepts, groups.candidates, config.seed)  # [N, C]
        pictograms = [prompt.pictogram for prompt in prompts]
        self.concepts = draw_group_concepts(pictograms, grouped._concepts, groups.candidates, config.seed)

    def measure(self, pictures: Tensor) -> dict[str, Any]:
        embeddings = self.judge.images(pictures)  # [N, D]
        hits: dict[str, Tensor] = {}
        if self.classifier is not None:
            hits["r_precision_classifier"] = self.classifier.hits(pictures, self.concepts)
        hits["r_precision_clip"] = clip_hits(embeddings, self.captions, self.candidates)
        hits["r_precision_pixels"] = pixel_hits(pictures, self.renders, self.candidates, self.owners)
        hits["background"] = background_hits(pictures, self.backgrounds, _PALETTE, "mean")
        hits["background_median"] = background_hits(pictures, self.backgrounds, _PALETTE, "median")
        found: dict[str, Any] = {name: Proportion.of(hit).to_json() for name, hit in hits.items()}
        return {**found, "clip_score": cosines(embeddings, self.captions).mean().item()}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every measure; of shares, of their values."""
    return {
        name: torch.tensor([_value(row[name]) for row in rows], dtype=torch.float64).mean().item()
        for name in rows[0]
    }


def _value(found: Mapping[str, Any] | float) -> float:
    return found["value"] if isinstance(found, Mapping) else found
