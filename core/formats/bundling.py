"""Stages that were loaded one by one, as one bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..embeddings.space import Embedding, EmbeddingSpace
from ..networks.clip import zero_picture
from ..networks.multilingual_clip import MultilingualClip
from ..networks.unet import with_null_embedding as with_null
from ..stages import AutoencoderStage, Bundle, ClipStage, DecoderStage, PriorStage, Stage, UpsamplerStage


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
        if isinstance(stage, AutoencoderStage):
            raise ValueError(
                f"{stage.source}: is an autoencoder without a decoder, which no bundle has a place for. Load "
                f"the decoder's own folder or file, which brings its autoencoder"
            )
        kind = _kind(stage)
        if kind in single:
            _require_one_space(stage, stage.space, single[kind], single[kind].space)
            raise ValueError(
                f"{stage.source}: is a second {kind} beside {single[kind].source}; a bundle has one. Leave "
                f"one of them out"
            )
        single[kind] = stage
    stages = list(single.values())
    first = next((stage for stage in stages if stage.space.mean is not None), next(iter(stages), None))
    for stage in upsamplers:
        if stage.space is not None and first is not None:
            _require_one_space(stage, stage.space, first, first.space)
    for kind, stage in single.items():
        assert first is not None, "there is this one"
        chosen = first.space
        _require_one_space(stage, stage.space, first, chosen)
        without = stage.space.mean is None and stage.space.norm == chosen.norm
        if without and not isinstance(stage, PriorStage):
            single[kind] = replace(stage, space=chosen)
    upsamplers.sort(key=lambda stage: stage.low_size)
    return with_null_embedding(Bundle(name, **single, upsamplers=tuple(upsamplers)))


def _require_one_space(stage: Stage, found: EmbeddingSpace, other: Stage, expected: EmbeddingSpace) -> None:
    if (found.id, found.dim) != (expected.id, expected.dim):
        raise ValueError(
            f"{stage.source}: is in the CLIP space {found.id!r} ({found.dim} dimensions), and {other.source} "
            f"in {expected.id!r} ({expected.dim} dimensions); the stages of a bundle share one. Take all of "
            f"them from one model, or make a bundle of each (of GLIDE every file is one)"
        )


@torch.no_grad()
def with_null_embedding(bundle: Bundle) -> Bundle:
    """A bundle whose decoder knows what stands for a dropped embedding, as far as its CLIP model can tell.

    Kandinsky's decoders were trained with the CLIP embedding of an all-zero (normalised) picture in its
    place, which no file of theirs holds (``get_zero_embed`` of diffusers). Others are returned as they are.
    """
    clip, decoder = bundle.clip, bundle.decoder
    conditioning = None if decoder is None else decoder.network.config.conditioning
    if conditioning is None or conditioning.null_known or clip is None:
        return bundle
    if getattr(clip.network.config, "vision", None) is None:
        return bundle
    z_i = clip.space.in_convention(clip.network.encode_pixels(zero_picture(clip.network)).float())
    z_i = Embedding(z_i, clip.space).in_norm_of(decoder.space)
    return replace(bundle, decoder=replace(decoder, network=with_null(decoder.network, z_i[0])))


def _kind(stage: ClipStage | PriorStage | DecoderStage) -> str:
    """The field of a bundle where a stage belongs."""
    if isinstance(stage, PriorStage):
        return "ar_prior" if stage.diffusion is None else "prior"
    if isinstance(stage, ClipStage):
        return "decoder_text" if isinstance(stage.network, MultilingualClip) else "clip"
    return "decoder"
