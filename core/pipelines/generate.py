"""Captions → pictures, through the stages of a bundle, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ..config import require_kind
from ..diffusion.noise import require_seed
from ..diffusion.samplers import SamplerStep, StepCallback
from ..embeddings.space import Embedding, TextFeatures
from ..stages import Bundle, DecoderStage, Defaults, PriorStage
from . import canvas
from .ar_prior import AutoregressiveOptions, sample_autoregressive_prior
from .decode import DecodeOptions, decode
from .encode import encode_text, text_as_image_embedding
from .inpaint import InpaintOptions
from .options import (
    Setting,
    from_settings,
    require_at_least,
    require_settings,
    settings_of,
    settings_of_noise_alone,
    spaced_schedule,
)
from .prior import PriorOptions, sample_diffusion_prior
from .upsample import UpsampleOptions, upsample


@dataclass(frozen=True)
class GenerateOptions:
    """How captions become pictures.

    Attributes:
        prior: one of PRIORS; not run for a decoder that paints captions alone (GLIDE's).
        prior_options, ar_prior_options, decode_options, upsample_options: of the stages' samplers.
        upsamplers: how many of the bundle's upsamplers run, from the smallest on.
        batch_size: captions that go through the stages together; changes the pictures by rounding only.
    """

    prior: str = "diffusion"
    prior_options: PriorOptions = field(default_factory=PriorOptions)
    decode_options: DecodeOptions = field(default_factory=DecodeOptions)
    upsample_options: UpsampleOptions = field(default_factory=UpsampleOptions)
    upsamplers: int = 0
    batch_size: int = 16
    ar_prior_options: AutoregressiveOptions = field(default_factory=AutoregressiveOptions)

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior {self.prior!r} is not known; choose one of {', '.join(PRIORS)}")
        require_at_least(1, batch_size=self.batch_size)
        require_at_least(0, upsamplers=self.upsamplers)


_STAGE_OPTIONS: dict[str, tuple[str, type[Any]]] = {
    "prior": ("prior_options", PriorOptions),
    "ar_prior": ("ar_prior_options", AutoregressiveOptions),
    "decoder": ("decode_options", DecodeOptions),
    "upsampler": ("upsample_options", UpsampleOptions),
}


def require_inputs(bundle: Bundle, options: Any, kind: type) -> None:
    """Raise a ValueError unless this is a bundle, and its options are None or of their kind."""
    require_kind(Bundle, "a bundle, as load_bundle gives it", bundle=bundle)
    require_kind(kind | NoneType, kind.__name__, options=options)


def stage_settings(stage: str) -> dict[str, Setting]:
    """What can be set of a stage where captions alone become pictures, by name."""
    return settings_of_noise_alone(_STAGE_OPTIONS[stage][1])


def stage_options(stage: str, given: Mapping[str, Any]) -> Any:
    """The options of a stage by its settings; a ValueError for values that do not go together."""
    return from_settings(_STAGE_OPTIONS[stage][1], given)


def require_noise_alone(prior: PriorOptions, decoder: DecodeOptions) -> None:
    """Raise a ValueError at options that need something to begin from, or a weaker decoder."""
    stages: dict[str, PriorOptions | DecodeOptions] = {"prior": prior, "decoder": decoder}
    for stage, options in stages.items():
        if options.strength != 1:
            raise ValueError(
                f"{stage}: found strength {options.strength:g}, but there is nothing to begin from here; "
                f"leave it out"
            )
        settings = stage_settings(stage)
        if options.guidance not in settings["guidance"].choices:
            raise ValueError(
                f"{stage}: found guidance {options.guidance!r}, expected one of "
                f"{', '.join(settings['guidance'].choices)}"
            )


def default_settings(defaults: Defaults, stage: str) -> dict[str, Any]:
    """What a bundle asks for a stage: ``"prior"``, ``"ar_prior"``, ``"decoder"`` or ``"upsampler"``.

    Raises:
        ValueError: no settings of that stage, or values out of range; names the file.
    """
    given = dict(defaults.tables.get(stage, {}))
    require_settings(settings_of(_STAGE_OPTIONS[stage][1]), given, f"{defaults.source}: defaults.{stage}")
    return given


def default_options(
    bundle: Bundle, given: Mapping[str, Mapping[str, Any]] = {}, where: str = "given"
) -> GenerateOptions:
    """How a bundle's pictures are made: as it asks for where a person says nothing, by the prior that it has.

    Args:
        given: what a person says: settings by stage, named as for ``default_settings``.
        where: what they stand in, for messages.

    Raises:
        ValueError: as ``default_settings``, and of what is given: also a stage that there is none of.
    """
    made: dict[str, Any] = {}
    if unknown := [stage for stage in given if stage not in _STAGE_OPTIONS]:
        raise ValueError(
            f"{where}: found the stage {unknown[0]!r}, expected some of {', '.join(_STAGE_OPTIONS)}"
        )
    require_kind(Mapping, "settings by name, such as {'steps': 50}", **given)
    for stage, (name, kind) in _STAGE_OPTIONS.items():
        own = given.get(stage, {})
        require_settings(settings_of(kind), own, where)
        made[name] = from_settings(kind, {**default_settings(bundle.defaults, stage), **own})
    only_other = bundle.prior is None and bundle.ar_prior is not None
    return GenerateOptions(prior="autoregressive" if only_other else "diffusion", **made)


@dataclass(frozen=True)
class _Sampled:
    """A prior that is sampled: by what, and the fields of its stage in ``Bundle`` and of its options."""

    sample: Callable[..., Embedding]
    stage: str
    options: str


_SAMPLED = {
    "diffusion": _Sampled(sample_diffusion_prior, "prior", "prior_options"),
    "autoregressive": _Sampled(sample_autoregressive_prior, "ar_prior", "ar_prior_options"),
}

PRIORS = (*_SAMPLED, "none")
"""Ways from captions to image embeddings, by name."""


def sample_prior(
    bundle: Bundle,
    text: TextFeatures,
    seed: int,
    options: GenerateOptions,
    callback: StepCallback | None = None,
) -> Embedding:
    """B captions → B image embeddings; row i is what seed + i gives alone.

    For a decoder that paints captions alone they are the captions' own: no prior runs.
    """
    sampled = _SAMPLED.get(options.prior) if needs_prior(bundle) else None
    if sampled is None:
        return text_as_image_embedding(text)
    return sampled.sample(
        _stage_of(bundle, options.prior),
        text,
        seed=seed,
        batch_size=len(text),
        options=getattr(options, sampled.options),
        callback=callback,
    )


def needs_prior(bundle: Bundle) -> bool:
    """Whether pictures of captions go by way of image embeddings: not where the decoder takes none."""
    return bundle.decoder is None or bundle.decoder.takes_embeddings


def _stage_of(bundle: Bundle, prior: str) -> PriorStage:
    """The stage of a prior that is sampled; a ValueError where the bundle lacks it."""
    stage = getattr(bundle, _SAMPLED[prior].stage)
    if stage is None:
        raise ValueError(f"bundle {bundle.name!r} has no {prior} prior; choose another prior or bundle")
    return stage


def require_stages(bundle: Bundle, options: GenerateOptions) -> None:
    """Raise a ValueError that names what the options need and the bundle lacks."""
    picture_size(bundle, options.upsamplers)
    if bundle.clip is None:
        raise ValueError(f"bundle {bundle.name!r} has no CLIP model; expected one to read captions with")
    if options.prior in _SAMPLED and needs_prior(bundle):
        _stage_of(bundle, options.prior)


def require_paintable(decoder: DecoderStage, options: DecodeOptions | InpaintOptions) -> None:
    """Raise a ValueError for a size, steps or a spacing that the decoder lacks, before a prior runs."""
    canvas.picture_size(decoder, options.width, options.height, quiet=True)
    spaced_schedule(decoder.diffusion, options.steps, options.spacing, getattr(options, "sampler", "ddim"))


def prior_guidance(options: GenerateOptions) -> float | None:
    """Guidance scale of the prior; None where it has no guidance."""
    sampled = _SAMPLED.get(options.prior)
    return None if sampled is None else getattr(options, sampled.options).guidance_scale


def with_prior_guidance(options: GenerateOptions, scale: float) -> GenerateOptions:
    """The same options with another guidance scale of the prior, which must have one."""
    name = _SAMPLED[options.prior].options
    return replace(options, **{name: replace(getattr(options, name), guidance_scale=scale)})


def picture_size(bundle: Bundle, upsamplers: int = 0) -> int:
    """Side of the pictures that :func:`generate` makes.

    Raises:
        ValueError: no decoder, or fewer upsamplers than asked for.
    """
    if bundle.decoder is None:
        raise ValueError(f"bundle {bundle.name!r} has no decoder; expected one to make pictures with")
    if not 0 <= upsamplers <= len(bundle.upsamplers):
        raise ValueError(
            f"upsamplers is {upsamplers}; expected 0 to {len(bundle.upsamplers)}, as many as bundle "
            f"{bundle.name!r} has"
        )
    size = bundle.decoder.picture_size
    for stage in bundle.upsamplers[:upsamplers]:
        size *= stage.network.config.image_size // stage.low_size
    return size


def generate(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    seed: int,
    options: GenerateOptions = GenerateOptions(),
    on_progress: Callable[[float], None] | None = None,
) -> Tensor:
    """One picture for each caption, see :func:`generate_with_embeddings`.

    Returns:
        [N, 3, S, S] float32 0..1 on the CPU.
    """
    return generate_with_embeddings(bundle, captions, seed=seed, options=options, on_progress=on_progress)[0]


def generate_with_embeddings(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    seed: int,
    options: GenerateOptions = GenerateOptions(),
    embeddings: Embedding | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, Embedding]:
    """One picture for each caption, and its embedding; picture i is the one that seed + i gives alone.

    Args:
        embeddings: [N, D], those that the prior gave before; it is not run again then. A decoder that paints
            captions alone is not given them.
        on_progress: told after each step how many pictures are done, fractions of a batch included.

    Returns:
        Pictures [N, 3, S, S] float32 0..1, and embeddings [N, D], both on the CPU.

    Raises:
        ValueError: a stage that the options need and the bundle lacks; no captions, or another number of
            them than embeddings.
    """
    require_stages(bundle, options)
    clip, decoder = bundle.clip, bundle.decoder
    assert clip is not None and decoder is not None
    require_paintable(decoder, options.decode_options)
    if not captions:
        raise ValueError("captions: found none, expected at least one")
    if embeddings is not None and len(embeddings) != len(captions):
        raise ValueError(
            f"embeddings: found {len(embeddings)}, expected one for each of {len(captions)} captions"
        )
    seed = require_seed(seed)
    stages = 2 + options.upsamplers
    parts, vectors = [], []
    for start in range(0, len(captions), options.batch_size):
        stop = min(start + options.batch_size, len(captions))

        def at(stage: int, share: tuple[int, int] = (start, stop - start)) -> StepCallback | None:
            return _told(on_progress, *share, stage, stages)

        text = encode_text(clip, list(captions[start:stop]))
        if embeddings is None:
            embedding = sample_prior(bundle, text, seed + start, options, at(0))
        else:
            embedding = replace(embeddings, vectors=embeddings.vectors[start:stop])
        vectors.append(embedding.vectors.cpu())
        read = text
        if bundle.decoder_text is not None:
            read = encode_text(bundle.decoder_text, list(captions[start:stop]))
        pictures = decode(
            decoder,
            embedding if decoder.takes_embeddings else None,
            read,
            seed=seed + start,
            batch_size=stop - start,
            options=options.decode_options,
            callback=at(1),
        )
        for index, stage in enumerate(bundle.upsamplers[: options.upsamplers]):
            pictures = upsample(
                stage,
                pictures,
                text,
                seed=seed + start,
                options=options.upsample_options,
                callback=at(2 + index),
            )
        parts.append(pictures.cpu())
    return torch.cat(parts), Embedding(torch.cat(vectors), embedding.space)


def _told(
    on_progress: Callable[[float], None] | None, before: int, pictures: int, stage: int, stages: int
) -> StepCallback | None:
    """The step callback of one stage of a batch, in pictures done; all stages count the same."""
    if on_progress is None:
        return None

    def on_step(step: SamplerStep) -> None:
        on_progress(before + pictures * (stage + (step.index + 1) / step.total) / stages)

    return on_step
