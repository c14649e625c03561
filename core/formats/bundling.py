"""Stages that were loaded one by one, as one bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..embeddings.space import require_same_space
from ..stages import Bundle, ClipStage, DecoderStage, PriorStage, Stage, UpsamplerStage


def bundle_of(name: str, stages: Iterable[Stage]) -> Bundle:
    """A bundle of these stages, all in one CLIP space.

    The statistics of the space, where a stage has some, go to the CLIP model and the decoder. A prior keeps
    what it has: with other statistics or another norm it would be read in another scale than it was trained.

    Raises:
        ValueError: two stages of one kind, or of different CLIP spaces.
    """
    single: dict[str, Stage] = {}
    upsamplers: list[UpsamplerStage] = []
    for stage in stages:
        if isinstance(stage, UpsamplerStage):
            upsamplers.append(stage)
            continue
        kind = _kind(stage)
        if kind in single:
            raise ValueError(
                f"{stage.source}: is a second {kind} beside {single[kind].source}; a bundle has one. Leave "
                f"one of them out"
            )
        single[kind] = stage
    spaces = [stage.space for stage in single.values()]
    chosen = next((space for space in spaces if space.mean is not None), next(iter(spaces), None))
    for stage in upsamplers:
        if stage.space is not None and chosen is not None:
            require_same_space(f"{stage.source}: this stage", stage.space, chosen)
    for kind, stage in single.items():
        require_same_space(f"{stage.source}: this stage", stage.space, chosen)
        without = stage.space.mean is None and stage.space.norm == chosen.norm
        if without and not isinstance(stage, PriorStage):
            single[kind] = replace(stage, space=chosen)
    upsamplers.sort(key=lambda stage: stage.low_size)
    return Bundle(name, **single, upsamplers=tuple(upsamplers))


def _kind(stage: ClipStage | PriorStage | DecoderStage) -> str:
    """The field of a bundle where a stage belongs."""
    if isinstance(stage, PriorStage):
        return "ar_prior" if stage.diffusion is None else "prior"
    return "clip" if isinstance(stage, ClipStage) else "decoder"
