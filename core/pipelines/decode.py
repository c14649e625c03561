"""CLIP image embeddings → pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..acceleration.kept_copies import with_packed_weights
from ..config import require_kind
from ..diffusion.denoiser import ClampedDenoiser, Denoiser, DynamicThresholdDenoiser, NetworkDenoiser
from ..diffusion.guidance import GUIDANCES, GuidedDenoiser, PairedDenoiser
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.parameterization import add_noise
from ..diffusion.regional import RegionalDenoiser
from ..diffusion.samplers import StepCallback
from ..diffusion.sampling import sample
from ..diffusion.schedule import Schedule, schedule_of
from ..embeddings.space import Embedding, TextFeatures
from ..networks.dalle2_unet import Dalle2UNet
from ..networks.perturbed_attention import with_perturbed_attention
from ..networks.unet import UNet, UNetCondition
from ..stages import DecoderStage, require_stage
from .annealing import EmbeddingAnnealing, embedding_annealing
from .canvas import Size, fit_to, network_shape, picture_size, to_network, to_pictures, with_previews
from .conditioning import decoder_conditions, warn_of_negatives
from .conditions import Conditions
from .options import (
    annealing_option,
    check_options,
    eta_option,
    guidance_interval_option,
    guidance_option,
    guidance_rescale_option,
    guidance_scale_option,
    is_guided,
    option,
    sampler_option,
    size_option,
    spaced_schedule,
    spacing_option,
    steps_option,
    strength_option,
)
from .regions import Region, region_sizes, region_weights
from .rows import common_batch, device_and_dtype, require_finite, require_pictures, to_batch


@dataclass(frozen=True)
class DecodeOptions:
    """How a decoder is sampled.

    Attributes:
        guidance_scale: 1 is the plain conditional prediction, at half the cost.
        guidance_interval: guide only at noise levels in this range of 0 (clean) to 1 (noise).
        guidance_rescale: see ``GuidedDenoiser``.
        dynamic_threshold: quantile of |x0| that is scaled into the range of pictures (Imagen, section 2.3);
            None clamps.
        pack_weights: on the CPU, keep a second, blocked copy of the weights from the first call on: twice the
            memory, and faster where layers have more weights than pixels.
    """

    steps: int = steps_option(25, "Denoising steps. More give cleaner detail and take longer.")
    guidance_scale: float = guidance_scale_option(
        1.5,
        "How strongly the picture follows the embedding. 1 is without guidance; higher is clearer and less "
        "varied, too high is garish. Guidance cfg_pp takes 0 to 1.",
    )
    sampler: str = sampler_option("ddim")
    eta: float = eta_option()
    guidance_interval: tuple[float, float] = guidance_interval_option()
    guidance_rescale: float = guidance_rescale_option()
    dynamic_threshold: float | None = option(
        None,
        0.0,
        1.0,
        0.005,
        help="Tames garish colours of strong guidance: the share of values kept within range at every step. "
        "0 is off; 0.995 is usual.",
        round=0.001,
        advanced=True,
        none=0.0,
    )
    pack_weights: bool = True
    width: int = size_option("wide")
    height: int = size_option("high")
    strength: float = strength_option(
        "With a picture to begin from: how much of it may change. 1 keeps next to nothing of it, 0 all."
    )
    spacing: str = spacing_option(optimal=True)
    guidance: str = guidance_option(*GUIDANCES)
    annealing: float = annealing_option()

    def __post_init__(self) -> None:
        check_options(self)
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold <= 1:
            raise ValueError(
                f"dynamic_threshold is {self.dynamic_threshold}; expected a quantile within 0 to 1, or none"
            )


@torch.no_grad()
def decode(
    decoder: DecoderStage,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    seed: int,
    batch_size: int = 1,
    options: DecodeOptions = DecodeOptions(),
    noise: Tensor | None = None,
    negative_embedding: Embedding | None = None,
    negative_text: TextFeatures | None = None,
    hint: Tensor | None = None,
    image: Tensor | None = None,
    regions: Sequence[Region] = (),
    weaker: DecoderStage | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample pictures that have the given embeddings.

    Every input with one row serves all pictures; picture i is the one that seed + i gives alone.

    Args:
        embedding: [1 or B, D], in the decoder's CLIP space; None for a decoder that takes none (GLIDE's).
        text: captions, 1 or B, or fewer that go into B: each for as many pictures, one after the other; used
            only by decoders that read text.
        batch_size: number B of pictures where the inputs have one row.
        noise: [1 or B, C, h, w], the x_T to start from, instead of the one that the seed gives; its size is
            that of the pictures unless the options name one. The noise that a sampler adds in its steps is
            the same with and without it.
        negative_embedding: [1 or B, D], what guidance leads away from, in place of the null embedding.
        negative_text: captions, 1 or B, in place of the null caption. Without guidance (scale 1 of all but
            cfg_pp) both are not used, nor by guidance that leads away from something else (pag,
            autoguidance).
        hint: [1 or B, 3, H, W] in 0..1, for decoders that take one; brought to the pictures' size.
        image: [1 or B, 3, H, W] in 0..1, to begin from instead of noise alone: ``options.strength`` is the
            share of the way that is gone, with the picture noised to where it begins (SDEdit 2108.01073).
            Brought to the pictures' size, the middle cut out.
        regions: parts that show something of their own; each takes as long as the whole picture. Guidance
            leads away from the same in all of them.
        weaker: for ``autoguidance``: a worse decoder of the same pictures, such as an earlier or smaller one
            of the same CLIP space and noise schedule.
        callback: called after each step; what it raises ends the sampling.

    Returns:
        [B, 3, H, W] float32 in 0..1, of the size in the options, or the decoder's own.

    Raises:
        ValueError: another CLIP space, batch sizes that do not match, noise of another shape, or a decoder
            that needs an embedding or a caption and gets none.
    """
    require_stage(DecoderStage, decoder=decoder)
    if image is not None:
        require_pictures(image)
    require_kind(Tensor | None, "the tensor of x_T, such as draw_starting_noise(…).values", noise=noise)
    if noise is not None:
        require_finite(noise=noise)
    network = decoder.network
    device, _ = device_and_dtype(network)
    conditions = Conditions(embedding, text, negative_embedding, negative_text, hint)
    given = {"noise": noise, "image": image}
    sizes = {name: len(rows) for name, rows in given.items() if rows is not None}
    batch = common_batch(**conditions.sizes(), **region_sizes(regions), **sizes, batch_size=batch_size)
    size = _size(decoder, options, noise, image)
    shape = network_shape(decoder, size)
    schedule = spaced_schedule(decoder.diffusion, options.steps, options.spacing, options.sampler)
    way = len(schedule) if image is None else round_down(options.strength * options.steps)
    known = None if image is None else to_network(decoder, fit_to(image.float().clamp(0, 1), size))
    if known is not None and way == 0:
        return to_pictures(decoder, to_batch(known, batch))
    schedule = schedule.start(way)
    annealing = _annealing(decoder, schedule, options, seed, batch)
    denoiser = _regional_denoiser(
        decoder, schedule, conditions, regions, batch, options, size, weaker, annealing
    )
    denoiser = limited(denoiser, decoder, options)

    generators = image_generators(seed, batch)
    # Drawn also when it is replaced: the noise of the steps must not start with the same numbers as an x_T
    # that came from the same seed.
    x = draw_noise(generators, shape, device)  # [B, C, h, w]
    if noise is not None:
        if tuple(noise.shape[1:]) != shape:
            raise ValueError(
                f"noise: found shape {tuple(noise.shape)}, expected [batch, {', '.join(map(str, shape))}] "
                f"for this decoder"
            )
        x = to_batch(noise.to(device, torch.float32), batch)
    if known is not None:
        signal, sigma = schedule.sqrt_alphas_cumprod[-1].item(), schedule.sqrt_one_minus_alphas_cumprod[-1]
        x = add_noise(to_batch(known, batch), x, signal, sigma.item())
    x = sample(
        options.sampler,
        denoiser,
        x,
        schedule,
        spec=decoder.diffusion,
        generators=generators,
        eta=options.eta,
        callback=with_previews(decoder, callback),
    )
    return to_pictures(decoder, x)


def _annealing(
    decoder: DecoderStage, schedule: Schedule, options: DecodeOptions, seed: int, batch: int
) -> EmbeddingAnnealing | None:
    if options.annealing == 0:
        return None
    config = decoder.network.config.conditioning
    if config is None or config.clip_dim is None:
        raise ValueError(
            f"annealing is {options.annealing}; this decoder paints captions and takes no image embedding "
            f"that could be annealed: set it to 0"
        )
    return embedding_annealing(schedule, options.annealing, decoder.space, seed, batch)


def round_down(steps: float) -> int:
    """Whole steps, past the rounding of what was multiplied."""
    return int(steps + 1e-6)


def _size(decoder: DecoderStage, options: DecodeOptions, noise: Tensor | None, image: Tensor | None) -> Size:
    latent = decoder.autoencoder is not None
    if latent and noise is not None and noise.ndim == 4 and not options.width and not options.height:
        return noise.shape[2] * decoder.scale, noise.shape[3] * decoder.scale
    return picture_size(decoder, options.width, options.height, image)


def _regional_denoiser(
    decoder: DecoderStage,
    schedule: Schedule,
    conditions: Conditions,
    regions: Sequence[Region],
    batch: int,
    options: DecodeOptions,
    size: Size,
    weaker: DecoderStage | None,
    annealing: EmbeddingAnnealing | None,
) -> Denoiser:
    """The denoiser of a picture with regions; what counts nowhere is not run, nor asked for."""

    def whole(told: Conditions) -> Denoiser:
        return decoder_denoiser(
            decoder, schedule, told, batch, options, size=size, weaker=weaker, annealing=annealing
        )

    if not regions:
        return whole(conditions)
    _, *sides = network_shape(decoder, size)
    weights = region_weights(regions, (sides[0], sides[1]))
    told = [conditions, *(replace(conditions, embedding=each.embedding, text=each.text) for each in regions)]
    denoisers = []
    used = [number for number, weight in enumerate(weights) if bool((weight > 0).any())]
    for number in used:
        try:
            part = whole(told[number])
        except ValueError as error:
            raise ValueError(f"regions: in number {number}, {error}" if number else str(error)) from None
        denoisers.append(part)
    device, _ = device_and_dtype(decoder.network)
    return RegionalDenoiser(denoisers, [weights[number].to(device) for number in used])


def decoder_denoiser(
    decoder: DecoderStage,
    schedule: Schedule,
    conditions: Conditions,
    batch: int,
    options: DecodeOptions,
    concat: Tensor | None = None,
    size: Size | None = None,
    weaker: DecoderStage | None = None,
    annealing: EmbeddingAnnealing | None = None,
) -> Denoiser:
    """The guided denoiser of B rows that sampling runs on; its x0 is not clamped yet.

    Conditions, and with them all keys and values of the context, are computed here, once for all steps.

    Args:
        concat: [B, C, S, S] for networks with ``concat_channels``, the same in both branches of guidance.
            None is a picture of which nothing is known, for networks that were trained to inpaint.
        size: of the pictures, None for the decoder's own.
        weaker: see :func:`decode`.
        annealing: of the embedding, in whose steps the conditions are computed anew.
    """
    network = decoder.network
    config = network.config
    size = size or picture_size(decoder)
    if concat is None and config.concat_channels:
        device, _ = device_and_dtype(network)
        _, *sides = network_shape(decoder, size)
        concat = torch.zeros(batch, config.concat_channels, *sides, device=device)
    guidance = GUIDANCES[options.guidance]
    guided = is_guided(options)
    if guided and guidance.against != "null":
        warn_of_negatives(conditions, options.guidance)
    conditional, null = decoder_conditions(
        decoder, conditions, batch, guided and guidance.against == "null", size
    )
    running = with_packed_weights(network) if options.pack_weights else network

    def denoiser(condition: _Condition, network: UNet | Dalle2UNet = running) -> NetworkDenoiser:
        return NetworkDenoiser(_call(network, schedule, condition, concat), schedule, decoder.diffusion)

    def at(step: int) -> UNetCondition:
        if annealing is None or conditions.embedding is None or not annealing.changes(step):
            return conditional
        noisy = replace(conditions, embedding=annealing.of(conditions.embedding, step))
        return decoder_conditions(decoder, noisy, batch, False, size)[0]

    alone: Denoiser = denoiser(at)
    if not guided:
        return alone
    if null is not None:
        together = UNetCondition.cat(conditional, null)

        def both_at(step: int) -> UNetCondition:
            condition = at(step)
            return together if condition is conditional else UNetCondition.cat(condition, null)

        both: Denoiser = denoiser(both_at)
    elif guidance.against == "attention":
        both = PairedDenoiser(alone, denoiser(at, with_perturbed_attention(running)))
    else:
        other = _require_weaker(decoder, weaker)
        both = PairedDenoiser(
            alone,
            decoder_denoiser(
                other,
                schedule,
                conditions,
                batch,
                replace(options, guidance_scale=1.0),
                concat,
                size,
                annealing=annealing,
            ),
        )
    return GuidedDenoiser(
        alone,
        both,
        schedule,
        options.guidance_scale,
        options.guidance_interval,
        options.guidance_rescale,
        options.guidance,
    )


def _require_weaker(decoder: DecoderStage, weaker: DecoderStage | None) -> DecoderStage:
    """The weaker decoder of autoguidance; a ValueError where there is none or it paints other pictures."""
    if weaker is None:
        raise ValueError(
            "weak_decoder: guidance 'autoguidance' leads away from a weaker decoder, and none is given; "
            "connect an earlier or smaller one of the same CLIP model, or choose another guidance"
        )
    kinds = [
        (each.network.config.in_channels, each.scale, each.autoencoder is None) for each in (decoder, weaker)
    ]
    own, other = (schedule_of(each.diffusion).alphas_cumprod for each in (decoder, weaker))
    if kinds[0] != kinds[1] or own.shape != other.shape or not torch.allclose(own, other):
        raise ValueError(
            f"weak_decoder: {weaker.source or 'this one'} paints in another way than "
            f"{decoder.source or 'the decoder'}: both must have the same noise schedule, and pictures or "
            f"latents of the same kind"
        )
    return weaker


_Condition = Callable[[int], UNetCondition]  # of a step


def _call(
    network: UNet | Dalle2UNet, schedule: Schedule, condition: _Condition, concat: Tensor | None
) -> Callable[[Tensor, int], Tensor]:
    """The network as a function of x_t and the index into the schedule."""
    device, dtype = device_and_dtype(network)
    if concat is not None:
        concat = concat.to(device, dtype, memory_format=torch.channels_last)

    def call(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), int(schedule.timesteps[step]), device=device)
        beside = None if concat is None else concat.repeat(len(x) // len(concat), 1, 1, 1)
        return network(x.to(dtype, memory_format=torch.channels_last), t, condition(step), concat=beside)

    return call


def limited(denoiser: Denoiser, decoder: DecoderStage, options: DecodeOptions) -> Denoiser:
    """A denoiser whose x0 is kept in the range of pictures, as the options say."""
    limit = decoder.diffusion.clip_x0
    if options.dynamic_threshold is not None:
        return DynamicThresholdDenoiser(denoiser, options.dynamic_threshold, limit or 1.0)
    return denoiser if limit is None else ClampedDenoiser(denoiser, limit)
