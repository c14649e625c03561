"""Two things together: are colours and places bound to the right one? (unCLIP 2204.06125, section 7)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...data.batches import load_pictograms
from ...data.captions import COLOURS
from ...pipelines.conditioning import null_embedding
from ...pipelines.decode import decode
from ...pipelines.encode import encode_images, encode_text
from ...stages import Bundle
from ..statistics import Proportion
from .colour import mean_hues, nearest_hues
from .config import BindingConfig, EvaluationConfig
from .judges import ConceptJudge, concepts_by_group, draw_group_concepts
from .pairs import HUES, Pair, draw_coloured_pairs, draw_placed_pairs, render_pairs, squares_of
from .report import Progress, Samples

WAYS = ("embedding", "caption", "both")
"""What the decoder is given: the embedding of the true picture, the caption, or both."""
_DRAWN = {"colours": draw_coloured_pairs, "places": draw_placed_pairs}


class BindingEvaluation:
    """The pairs of things, drawn when it is made; :meth:`measure` then paints and judges."""

    def __init__(
        self,
        config: EvaluationConfig,
        binding: BindingConfig,
        bundle: Bundle,
        classifier: ConceptJudge | None,
        on_progress: Progress | None = None,
    ) -> None:
        """Raises ValueError without a classifier, or where it or the data lack concepts."""
        if classifier is None:
            raise ValueError(
                "[binding] needs a classifier, which says what is in each half of a picture: set classifier "
                "to its file (--classifier), or leave the table out"
            )
        self._config, self._bundle, self._classifier = config, bundle, classifier
        self._on_progress = on_progress
        every = load_pictograms(config.data, held_out=None)
        self._concepts = concepts_by_group(every)
        trained = [each for each in every if not each.held_out]
        self._pairs = {kind: draw(trained, binding.pairs, config.seed) for kind, draw in _DRAWN.items()}
        classifier.classes_of([name for group in self._concepts.values() for name in group])

    def measure(self) -> tuple[dict[str, Any], list[Samples]]:
        """The table, and the first pictures of each way.

        By kind of pair, ``colours`` and ``places``, the measures of ``real`` pictures and of those painted
        from each of the ``WAYS``: how often, in both halves, the classifier names the right concept among
        those of its group (``named``), thinks the right one of the two more likely (``positions``), or the
        other one (``swapped``); of coloured pairs also how often both mean hues are nearest to the named
        colour (``colours``), or to the other thing's (``colours_swapped``).
        """
        found: dict[str, Any] = {}
        samples = []
        for kind, pairs in self._pairs.items():
            captions = [pair.caption for pair in pairs]
            real = render_pairs(pairs, self._size)
            found[kind] = {"pairs": len(pairs), "real": self._judged(pairs, real)}
            for way in WAYS:
                pictures = self._painted(f"two things, {kind}, {way}", way, captions, real)
                found[kind][way] = self._judged(pairs, pictures)
                shown = slice(self._config.samples)
                samples.append(Samples(f"binding-{kind}", way, captions[shown], pictures[shown].clone()))
        return found, samples

    @property
    def _size(self) -> int:
        assert self._bundle.decoder is not None
        return self._bundle.decoder.picture_size

    def _painted(self, title: str, way: str, captions: list[str], real: Tensor) -> Tensor:
        bundle, config = self._bundle, self._config
        assert bundle.clip is not None and bundle.decoder is not None
        reader = bundle.decoder_text or bundle.clip
        parts = []
        for start in range(0, len(captions), config.batch_size):
            few = slice(start, min(start + config.batch_size, len(captions)))
            if way == "caption":
                embedding = null_embedding(bundle.decoder, few.stop - start, bundle.clip)
            else:
                embedding = encode_images(bundle.clip, real[few])
            text = None if way == "embedding" else encode_text(reader, captions[few])
            pictures = decode(
                bundle.decoder,
                embedding,
                text,
                seed=config.seed + start,
                batch_size=few.stop - start,
                options=config.decoder,
            )
            parts.append(pictures.cpu())
            if self._on_progress is not None:
                self._on_progress(title, few.stop, len(captions))
        return torch.cat(parts)

    def _judged(self, pairs: list[Pair], pictures: Tensor) -> dict[str, Any]:
        halves = squares_of(pictures, pairs[0].coloured)
        named, better = zip(*(self._half(pairs, halves[number], number) for number in (0, 1)), strict=True)
        hits = {
            "named": named[0] & named[1],
            "positions": (better[0] > 0) & (better[1] > 0),
            "swapped": (better[0] < 0) & (better[1] < 0),
        }
        if pairs[0].coloured:
            seen = [nearest_hues(mean_hues(half), {name: COLOURS[name] for name in HUES}) for half in halves]
            said = [[pair.things[number].colour for pair in pairs] for number in (0, 1)]
            hits["colours"] = _alike(seen[0], said[0]) & _alike(seen[1], said[1])
            hits["colours_swapped"] = _alike(seen[0], said[1]) & _alike(seen[1], said[0])
        return {name: Proportion.of(hit).to_json() for name, hit in hits.items()}

    def _half(self, pairs: list[Pair], pictures: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Whether the own concept is found among those of its group, and its score above the other one's."""
        own = [pair.things[number].pictogram for pair in pairs]
        other = [pair.things[1 - number].pictogram.concept for pair in pairs]
        config = self._config
        candidates = draw_group_concepts(own, self._concepts, config.candidates, config.seed)
        scores = self._classifier.scores(pictures)  # [N, classes]
        right = self._classifier.classes_of([pictogram.concept for pictogram in own])
        wrong = self._classifier.classes_of(other)
        rows = torch.arange(len(scores))
        return self._classifier.hits(pictures, candidates), scores[rows, right] - scores[rows, wrong]


def _alike(seen: list[str], said: list[str]) -> Tensor:
    return torch.tensor([one == other for one, other in zip(seen, said, strict=True)])
