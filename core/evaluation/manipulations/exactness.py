"""What must come out exactly: the ends of interpolations, and what a mask leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...embeddings.arithmetic import interpolate
from ...pipelines.composite import SHAPES, composite, region_mask, resize, shrink_mask
from ...pipelines.encode import encode_text
from ...pipelines.generate import picture_size
from ...pipelines.inpaint import inpaint
from ...pipelines.noise import StartingNoise, draw_starting_noise, interpolate_noise
from ...pipelines.upsample import upsample
from ..quality.prompts import Prompt, render_prompts
from .measured_bundle import MeasuredBundle

FRAMES = 3  # both ends and the middle
FEATHER = 4


@torch.no_grad()
def measure_interpolation(measured: MeasuredBundle, prompts: list[Prompt]) -> dict[str, Any]:
    """Pairs of pictures with embedding and x_T interpolated, against both pictures' own decodes.

    The frames go through the decoder in other batches than the sources do, and from interpolated noise rather
    than from a seed.

    Returns:
        ``largest_difference`` of a value in 0..1 between an end and its source, and how many of all
        ``values`` differ ``in_8_bits``; ``middle``, the mean absolute difference of the middle frames from
        their first ends, which are other pictures.
    """
    pairs, decoder = measured.config.interpolations, measured.bundle.decoder
    embedding = measured.encode(render_prompts(prompts[: 2 * pairs], measured.size))  # [2P, D]
    noise = draw_starting_noise(decoder, seed=measured.config.seed, batch_size=2 * pairs).values
    counter = measured.counter("interpolation", (2 + FRAMES) * pairs)
    sources = measured.decode(embedding, counter)
    first, second = (replace(embedding, vectors=embedding.vectors[start::2]) for start in (0, 1))
    between = interpolate_noise(StartingNoise(noise[::2]), StartingNoise(noise[1::2]), FRAMES)
    frames = measured.decode(interpolate(first, second, FRAMES), counter, between.values)
    frames = rearrange(frames, "(p f) c h w -> p f c h w", f=FRAMES)
    ends = frames[:, [0, -1]].flatten(0, 1)  # in the order of the sources
    return {
        "pairs": pairs,
        "values": ends.numel(),
        "largest_difference": (ends - sources).abs().max().item(),
        "in_8_bits": int((_bytes(ends) != _bytes(sources)).sum()),
        "middle": (frames[:, 1] - frames[:, 0]).abs().mean().item(),
    }


@torch.no_grad()
def measure_inpainting(measured: MeasuredBundle, prompts: list[Prompt]) -> dict[str, Any]:
    """Masked parts of pictures painted anew as other concepts, upsampled and put into the originals.

    The originals have the size of the upsamplers' result, a quarter of the height cut off, so that they are
    not square. Every picture has a mask of its own, rectangles and ellipses by turns.

    Returns:
        For the decoder's own size (``decoded``), and for the original one with a hard (``hard``) and a soft
        edge (``soft``): the number of pixels outside of the masks, how many of them ``differ`` from the
        original's in any bit, and the share ``repainted`` of the pixels inside that do.
    """
    config, bundle = measured.config, measured.bundle
    count, side = config.inpainted, picture_size(bundle, config.upsamplers)
    originals = render_prompts(prompts[:count], side)[..., : 3 * side // 4, :]  # [N, 3, H, W]
    masks = torch.cat([_mask(index, count, originals) for index in range(count)])  # [N, 1, H, W]
    embedding = measured.encode(originals)
    other = replace(embedding, vectors=embedding.vectors.roll(1, dims=0))
    counter = measured.counter("inpainting", (1 + config.upsamplers) * count)
    edited = inpaint(
        bundle.decoder,
        originals,
        masks,
        other,
        measured.text,
        seed=config.seed,
        batch_size=count,
        options=config.inpaint,
        callback=counter.stage(count),
    ).cpu()
    size = (edited.shape[-2], edited.shape[-1])  # with an autoencoder near the originals' proportions
    decoded = _compared(resize(originals, size), edited, shrink_mask(masks, size))
    caption = encode_text(bundle.clip, [""])  # for upsamplers that read one
    for stage in bundle.upsamplers[: config.upsamplers]:
        edited = upsample(
            stage,
            edited,
            caption,
            seed=config.seed,
            options=config.upsampler,
            callback=counter.stage(count),
        ).cpu()
    hard, soft = (composite(originals, edited, masks, feather) for feather in (0, FEATHER))
    return {
        "pictures": count,
        "size": [originals.shape[-1], originals.shape[-2]],
        "decoded": decoded,
        "hard": _compared(originals, hard, masks),
        "soft": _compared(originals, soft, masks),
    }


def _mask(index: int, count: int, pictures: Tensor) -> Tensor:
    """[1, 1, H, W], moved along the diagonal from one picture to the next."""
    place = 0.3 + 0.4 * index / max(1, count - 1)
    return region_mask(
        tuple(pictures.shape[-2:]), SHAPES[index % len(SHAPES)], (place, 1 - place), (0.45, 0.55)
    )


def _compared(original: Tensor, edited: Tensor, mask: Tensor) -> dict[str, Any]:
    differs = (original != edited).any(dim=1)  # [N, H, W]
    kept = mask[:, 0] == 0
    return {
        "unmasked": int(kept.sum()),
        "differ": int((differs & kept).sum()),
        "repainted": differs[~kept].double().mean().item(),
    }


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().byte()
