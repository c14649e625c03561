"""The manipulations of the paper as functions of a bundle: variations, interpolations, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import is_whole, require_at_least, require_kind
from ..diffusion.sampling import SAMPLERS
from ..embeddings.arithmetic import interpolate as between_embeddings
from ..embeddings.space import Embedding, TextFeatures
from ..stages import Bundle, ClipStage, DecoderStage
from .canvas import paintable
from .composite import composite
from .decode import DecodeOptions, decode
from .encode import encode_images, encode_text
from .generate import (
    GenerateOptions,
    default_options,
    default_settings,
    require_inputs,
    require_paintable,
    sample_prior,
)
from .inpaint import InpaintOptions
from .inpaint import inpaint as paint_masked
from .noise import draw_starting_noise
from .options import from_settings, settings_of
from .prior import PriorOptions
from .rows import CAPTION, PICTURES


def vary(
    bundle: Bundle,
    image: Tensor,
    *,
    seed: int = 0,
    count: int = 1,
    size: int | tuple[int, int] | None = None,
    caption: str = "",
    options: DecodeOptions | None = None,
) -> Tensor:
    """Pictures that show what a picture shows (unCLIP, section 3.1): its embedding, decoded anew.

    Args:
        image: [1 or N, 3, H, W] in 0..1.
        seed: of the first picture; picture i is the one that seed + i gives alone.
        count: how many pictures are made of one.
        size: of a decoder that paints any size: a side, or width and height. None is its own.
        caption: for decoders that read captions as well.

    Returns:
        [N or count, 3, S, S] float32 in 0..1 on the CPU, in the decoder's size.

    Raises:
        ValueError: a stage that the bundle lacks, or what ``decode`` refuses.
    """
    require_inputs(bundle, options, DecodeOptions)
    require_kind(str, CAPTION, caption=caption)
    require_at_least(1, count=count)
    options = of_size(_decoder(bundle), options or default_options(bundle).decode_options, size)
    with torch.no_grad():
        embedding = encode_images(_clip(bundle), image)
        return _decoded(bundle, embedding, caption, seed, count, options)


def interpolate(
    bundle: Bundle,
    first: str | Tensor,
    second: str | Tensor,
    *,
    frames: int = 9,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    options: GenerateOptions | None = None,
) -> Tensor:
    """From one picture or caption to another in steps, on the great circle between their embeddings.

    All frames start from one noise, so that only what they show changes (unCLIP, section 3.2).

    A sampler of the bundle that adds noise in its steps, another one in each frame, is left for ``ddim``,
    unless the options name it.

    Args:
        first, second: a picture [1, 3, H, W] in 0..1, or a caption, which the prior turns into an embedding.
        frames: pictures in all, both ends among them.
        size: see :func:`vary`.

    Returns:
        [frames, 3, S, S] float32 in 0..1 on the CPU.

    Raises:
        ValueError: fewer than 2 frames, something else than one picture or a caption, a stage that the bundle
            lacks, a decoder that paints captions alone, or what ``decode`` refuses.
    """
    require_inputs(bundle, options, GenerateOptions)
    decoder = _decoder(bundle)
    if not decoder.takes_embeddings:
        raise ValueError(
            f"bundle {bundle.name!r} paints captions alone, so there are no image embeddings to go between; "
            f"choose another bundle"
        )
    for name, given in (("first", first), ("second", second)):
        if not isinstance(given, str | Tensor):
            raise ValueError(
                f"{name}: found {type(given).__name__}, expected a caption, or a picture as {PICTURES}"
            )
        if isinstance(given, Tensor) and given.ndim == 4 and len(given) != 1:
            raise ValueError(f"{name}: found {len(given)} pictures, expected a single one")
    quiet = options is None
    options = options or default_options(bundle)
    decode_options = of_size(decoder, options.decode_options, size)
    if quiet and SAMPLERS[decode_options.sampler].adds_noise(decode_options.eta):
        decode_options = replace(decode_options, sampler="ddim", eta=0.0)
    require_paintable(decoder, decode_options)
    with torch.no_grad():
        start, end = (_embedded(bundle, given, seed, options) for given in (first, second))
        between = between_embeddings(start, end, frames)
        noise = draw_starting_noise(
            decoder, seed=seed, width=decode_options.width, height=decode_options.height
        )
        return _decoded(bundle, between, "", seed, 1, decode_options, noise.values)


def inpaint(
    bundle: Bundle,
    image: Tensor,
    mask: Tensor,
    caption: str,
    *,
    seed: int = 0,
    options: InpaintOptions | None = None,
    prior_options: PriorOptions | None = None,
) -> Tensor:
    """What a mask covers, painted anew to fit a caption, and put into the picture.

    Args:
        image: [1 or N, 3, H, W] in 0..1.
        mask: [1 or N, 1, H, W] in 0..1, 1 = repaint.
        caption: what each whole picture is to show; all have the embedding that the prior gives for ``seed``.
        seed: of the first picture; the noise of picture i is that of seed + i.
        options: None for the guidance that the bundle asks for its decoder, and else what inpainting has: the
            bundle's steps and sampler are those of whole pictures.

    Returns:
        [N, 3, H, W] float32 in 0..1 on the CPU; where the mask is 0 the picture, to the bit.

    Raises:
        ValueError: an empty mask, a stage that the bundle lacks, or what ``inpaint`` refuses.
    """
    require_inputs(bundle, options, InpaintOptions)
    require_kind(PriorOptions | None, PriorOptions.__name__, prior_options=prior_options)
    require_kind(str, CAPTION, caption=caption)
    options = options or _inpaint_options(bundle)
    generate_options = default_options(bundle)
    if prior_options is not None:
        generate_options = replace(generate_options, prior_options=prior_options)
    with torch.no_grad():
        decoder = _decoder(bundle)
        require_paintable(decoder, options)
        embedding = None
        if decoder.takes_embeddings:
            embedding = _embedded(bundle, caption, seed, generate_options)
        text, hard = _read(bundle, caption), replace(options, feather=0)
        painted = paint_masked(decoder, image, mask, embedding, text, seed=seed, options=hard)
        if not options.changes:  # and not what the decoder's size has left of it
            return image.float().clamp(0, 1).cpu()
        # Once, in the picture's own pixels; the option is in those of the decoder's size.
        stretch = (image[0, 0].numel() / painted[0, 0].numel()) ** 0.5
        return composite(image.cpu(), painted.cpu(), mask.cpu(), round(stretch * options.feather))


def _inpaint_options(bundle: Bundle) -> InpaintOptions:
    asked = default_settings(bundle.defaults, "decoder")
    taken: dict[str, Any] = {name: asked[name] for name in ("guidance_scale", "guidance") if name in asked}
    if taken.get("guidance") not in settings_of(InpaintOptions)["guidance"].choices:
        taken.pop("guidance", None)
    return from_settings(InpaintOptions, taken)


def _decoded(
    bundle: Bundle,
    embedding: Embedding,
    caption: str,
    seed: int,
    count: int,
    options: DecodeOptions,
    noise: Tensor | None = None,
) -> Tensor:
    text = _read(bundle, caption)
    pictures = decode(
        _decoder(bundle), embedding, text, seed=seed, batch_size=count, options=options, noise=noise
    )
    return pictures.cpu()


def _embedded(bundle: Bundle, given: str | Tensor, seed: int, options: GenerateOptions) -> Embedding:
    """The embedding of a picture, or the one that the prior gives for a caption."""
    if isinstance(given, Tensor):
        return encode_images(_clip(bundle), given)
    return sample_prior(bundle, encode_text(_clip(bundle), [given]), seed, options)


def _read(bundle: Bundle, caption: str) -> TextFeatures:
    """A caption as the decoder reads it."""
    return encode_text(bundle.decoder_text or _clip(bundle), [caption])


def of_size(
    decoder: DecoderStage, options: DecodeOptions, size: int | tuple[int, int] | None
) -> DecodeOptions:
    """The options with another size of the pictures: a side, or width and height; None leaves them.

    Raises:
        ValueError: a size that the decoder does not paint.
    """
    if size is None:
        return options
    width, height = sides_of(size)
    paintable(decoder, width, height, "size", "leave it out")
    return replace(options, width=width, height=height)


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height of a size; a side is both.

    Raises:
        ValueError: neither a side nor two, or no pixels.
    """
    sides: Any = (size, size) if is_whole(size) else size
    if not (isinstance(sides, Sequence) and len(sides) == 2 and all(map(is_whole, sides))):
        raise ValueError(
            f"size is {size!r}; expected a side in pixels, such as 256, or width and height, such as "
            f"(768, 512)"
        )
    require_at_least(1, size=min(sides))
    return int(sides[0]), int(sides[1])


def _clip(bundle: Bundle) -> ClipStage:
    if bundle.clip is None:
        raise ValueError(f"bundle {bundle.name!r} has no CLIP model; load one that has, or join its prior")
    return bundle.clip


def _decoder(bundle: Bundle) -> DecoderStage:
    if bundle.decoder is None:
        raise ValueError(f"bundle {bundle.name!r} has no decoder; load one that has, or join a decoder")
    return bundle.decoder
