"""Captions and pictures → CLIP features and embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..embeddings.space import Embedding, TextFeatures, require_plain_text
from ..networks.clip import NO_IMAGE_ENCODER, ImageFit, fit_images
from ..stages import ClipStage, require_stage
from .rows import common_batch, device_and_dtype, require_pictures, to_batch

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 64  # bounds the memory of a large folder of pictures
CAPTIONS_AT_ONCE = 256
_SHOWN = 60  # characters of a caption in a message


@torch.no_grad()
def encode_text(
    clip: ClipStage, prompts: Sequence[str], *, callback: Callable[[int], object] | None = None
) -> TextFeatures:
    """Encode captions, and the empty caption as ``null``, CAPTIONS_AT_ONCE at a time.

    A caption that does not fit the model's context is cut at its end, with a warning.

    Args:
        prompts: B captions; an empty string is a caption like any other.
        callback: told how many captions are done, after each part of them.

    Returns:
        Features in float32 on the network's device; ``pooled`` in the norm convention of the CLIP space.

    Raises:
        ValueError: no captions, or something else than a list of strings.
    """
    require_stage(ClipStage, clip=clip)
    if not isinstance(prompts, Iterable) or isinstance(prompts, str):
        raise ValueError(f"prompts: found {prompts!r}, expected a list of captions")
    prompts = list(prompts)  # what makes them one by one can be read only once
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts: found {prompts!r}, expected a list of captions")
    if not prompts:
        raise ValueError("prompts: found an empty list, expected at least one caption (it may be empty)")
    _warn_of_cuts(clip, prompts)
    device, _ = device_and_dtype(clip.network)
    encoded = []
    for ids in clip.tokenizer([*prompts, ""]).split(CAPTIONS_AT_ONCE):  # [B + 1, L]
        encoded.append(clip.network.encode_tokens(ids.to(device)))
        if callback is not None:
            callback(min(CAPTIONS_AT_ONCE * len(encoded), len(prompts)))
    tokens, mask, pooled = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    tokens, pooled = tokens.float(), clip.space.in_convention(pooled.float())
    null = TextFeatures(tokens[-1:], mask[-1:], pooled[-1:], clip.space)
    return TextFeatures(tokens[:-1], mask[:-1], pooled[:-1], clip.space, null)


@torch.no_grad()
def encode_images(
    clip: ClipStage,
    image: Tensor,
    *,
    fit: ImageFit = "crop",
    callback: Callable[[int], object] | None = None,
) -> Embedding:
    """Encode pictures of one size, IMAGES_AT_ONCE at a time.

    Args:
        image: [B, 3, H, W] in 0..1, of any size; values outside are clamped.
        fit: what becomes of pictures that are not square, see ``ClipNetwork.encode_pixels``.
        callback: told how many pictures are done, after each part of them.

    Returns:
        float32 embeddings on the network's device, in the norm convention of the CLIP space.

    Raises:
        ValueError: not pictures, see ``require_pictures``; an unknown ``fit``.
    """
    require_stage(ClipStage, clip=clip)
    require_pictures(image)
    device, _ = device_and_dtype(clip.network)
    rows: list[Tensor] = []
    for part in image.split(IMAGES_AT_ONCE):
        rows.append(clip.network.encode_pixels(part.to(device, torch.float32).clamp(0, 1), fit))
        if callback is not None:
            callback(sum(map(len, rows)))
    return Embedding(clip.space.in_convention(torch.cat(rows).float()), clip.space)


def encode_pictures(
    clip: ClipStage,
    pictures: Iterable[Tensor],
    *,
    fit: ImageFit = "crop",
    callback: Callable[[int], object] | None = None,
) -> Embedding:
    """Encode any number of pictures of any sizes, IMAGES_AT_ONCE at a time.

    Args:
        pictures: each [3, H, W] in 0..1, and let go of as soon as it has the network's size: an iterator that
            reads files needs the memory of one large picture, whatever their number.
        fit: see :func:`encode_images`, which gives each picture the same embedding.
        callback: told how many pictures are done, after each part of them.

    Returns:
        Embeddings in the order of the pictures, see :func:`encode_images`.

    Raises:
        ValueError: none, not pictures, an unknown ``fit``, or a model without an image encoder.
    """
    vision = getattr(clip.network.config, "vision", None)
    if vision is None:
        raise ValueError(NO_IMAGE_ENCODER)
    waiting, rows = iter(pictures), []
    while part := [_fitted(each, vision.image_size, fit) for each in islice(waiting, IMAGES_AT_ONCE)]:
        rows.append(encode_images(clip, torch.cat(part), fit=fit).vectors)
        if callback is not None:
            callback(sum(map(len, rows)))
    if not rows:
        raise ValueError("pictures: found none, expected at least one")
    return Embedding(torch.cat(rows), clip.space)


def text_as_image_embedding(text: TextFeatures, batch_size: int = 1) -> Embedding:
    """z_t used as if it were z_i: generation without a prior (unCLIP, section 5.1 and figure 8).

    As it is, in raw spaces too, whose text and image embeddings differ in length: so does the paper.

    Args:
        text: B captions, or one for the whole batch.

    Raises:
        ValueError: batch sizes that do not match.
    """
    require_plain_text("text", text)
    batch = common_batch(text=len(text), batch_size=batch_size)
    return Embedding(to_batch(text.pooled, batch), text.space)


def _fitted(picture: Tensor, size: int, fit: ImageFit) -> Tensor:
    """[3, H, W] → [1, 3, size, size]."""
    require_pictures(picture[None], "pictures")
    return fit_images(picture[None].clamp(0, 1), size, fit)


def _warn_of_cuts(clip: ClipStage, prompts: Sequence[str]) -> None:
    # Tokenizers of other models may not be able to say how long a caption is; then nothing can be said.
    encode = getattr(clip.tokenizer, "encode", None)
    length = getattr(clip.tokenizer, "context_length", None)
    if encode is None or length is None:
        return
    room = length - getattr(clip.tokenizer, "special_tokens", 2)  # CLIP's has a start and an end token
    for prompt in prompts:
        cut = len(encode(prompt)) - room
        if cut > 0:
            shown = prompt if len(prompt) <= _SHOWN else prompt[:_SHOWN] + "…"
            logger.warning(
                "the caption %r has %d tokens and this CLIP model reads %d: the last %d are cut off",
                shown,
                cut + room,
                room,
                cut,
            )
