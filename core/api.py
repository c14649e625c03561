"""unCLIP in a few lines of Python: load a bundle, make pictures of captions and of pictures, save them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .config import require_kind
from .folders import at_home
from .formats.load import load_any_bundle
from .formats.lora import read_lora
from .pictures.files import save
from .pipelines.encode import encode_text
from .pipelines.generate import GenerateOptions, default_options, generate, picture_size, require_inputs
from .pipelines.lora import with_loras
from .pipelines.manipulate import inpaint, interpolate, of_size, sides_of, vary
from .pipelines.rows import CAPTION
from .precision import as_device, choose_dtype, require_weights
from .stages import Bundle

__all__ = [
    "encode_text",
    "generate_image",
    "inpaint",
    "interpolate",
    "load_bundle",
    "load_lora",
    "save",
    "vary",
]

_USUAL_SIZE = 256
_EMBEDDED = Path(__file__).resolve().parents[1] / "models"


def load_bundle(
    bundle: str | Path = "mini",
    *others: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Bundle:
    """Load all stages of a bundle.

    Args:
        bundle: ``"mini"``, the one that is embedded, or the folder of another: of unclip, or a whole model in
            diffusers' layout. ``~`` is the home folder.
        others: more models in diffusers' layout that belong to it: Kandinsky's decoder beside its prior.
        dtype: to which the weights are converted; None takes what is fast on the device, by the rule of the
            nodes' and the command line's precision auto. ``bundle.precision`` tells which it is.

    Raises:
        ValueError: no bundle, a stage in it that cannot be loaded, a device that is not here, or a type that
            no weights can have.
    """
    for each in (bundle, *others):
        require_kind(str | PathLike, "the name or the folder of a bundle", bundle=each)
    folder = _EMBEDDED / bundle if str(bundle) == "mini" else at_home(bundle)
    device = as_device(device)
    dtype = choose_dtype("auto", device) if dtype is None else require_weights(dtype)
    return load_any_bundle(folder, *map(at_home, others), device=device, dtype=dtype)


def load_lora(bundle: Bundle, file: str | Path, strength: float = 1.0) -> Bundle:
    """A bundle whose prior or decoder is changed by a LoRA file; the given one stays as it is.

    Args:
        file: of ``unclip train``, of diffusers' scripts for Kandinsky 2.2, of peft, or in kohya's names. It
            tells by its names what it was trained on. ``~`` is the home folder.
        strength: 1 as it was trained, 0 nothing at all, below 0 the opposite. Further LoRAs add up.

    Raises:
        ValueError: no LoRA, one for another network, or a strength that is not finite.
    """
    require_inputs(bundle, None, GenerateOptions)
    require_kind(str | PathLike, "the path of a LoRA", file=file)
    stages = (bundle.prior, bundle.ar_prior, bundle.decoder)
    networks = (None if stage is None else stage.network for stage in stages)
    loras = read_lora(at_home(file)).for_networks(*networks)
    prior, ar_prior, decoder = with_loras(stages, loras, strength)
    return replace(bundle, prior=prior, ar_prior=ar_prior, decoder=decoder)


def generate_image(
    bundle: Bundle,
    captions: str | Sequence[str],
    *,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    options: GenerateOptions | None = None,
) -> Tensor:
    """Pictures of captions: encode, prior, decode, upsample.

    Args:
        captions: one, or N.
        seed: of the first picture; picture i is the one that seed + i gives alone.
        size: side of the pictures: the decoder's, or that of one of the bundle's upsamplers. Of a decoder
            that paints any size (Kandinsky's) also another side, or width and height. None is 256 where the
            bundle makes it, else the decoder's own.
        options: of all stages, None for what the bundle asks for; how many upsamplers run follows from
            ``size``.

    Returns:
        [N, 3, size, size] float32 in 0..1 on the CPU.

    Raises:
        ValueError: a size that the bundle does not make, or a stage that it lacks.
    """
    require_inputs(bundle, options, GenerateOptions)
    if not isinstance(captions, Iterable):
        raise ValueError(f"captions: found {captions!r}, expected a caption or a list of captions")
    captions = [captions] if isinstance(captions, str) else list(captions)
    for place, caption in enumerate(captions):
        require_kind(str, CAPTION, **{f"captions[{place}]": caption})
    options = options or default_options(bundle)
    sizes = [picture_size(bundle, count) for count in range(len(bundle.upsamplers) + 1)]
    assert bundle.decoder is not None  # as picture_size asks
    free = bundle.decoder.autoencoder is not None
    if size is not None:
        width, height = sides_of(size)
        size = width if width == height else (width, height)
    if free and size is not None and size not in sizes[1:]:  # also where the options name another one
        options = replace(
            options, upsamplers=0, decode_options=of_size(bundle.decoder, options.decode_options, size)
        )
    elif size is None or size in sizes:
        size = size or (_USUAL_SIZE if _USUAL_SIZE in sizes else sizes[0])
        options = replace(options, upsamplers=sizes.index(size))
    else:
        raise ValueError(
            f"size is {size}; bundle {bundle.name!r} makes pictures of {', '.join(map(str, sizes))} pixels"
        )
    with torch.no_grad():
        return generate(bundle, captions, seed=seed, options=options)
