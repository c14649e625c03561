"""CLIP image embeddings → pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..acceleration.kept_copies import with_packed_weights
from ..diffusion.denoiser import ClampedDenoiser, Denoiser, DynamicThresholdDenoiser, NetworkDenoiser
from ..diffusion.guidance import GuidedDenoiser
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.samplers import StepCallback
from ..diffusion.sampling import sample
from ..diffusion.schedule import Schedule, make_schedule
from ..embeddings.space import Embedding, TextFeatures, require_same_space
from ..networks.conditioning import ConditioningConfig
from ..networks.unet import UNet, UNetCondition
from ..stages import DecoderStage
from .conditions import Conditions
from .options import (
    check_options,
    eta_option,
    guidance_interval_option,
    guidance_rescale_option,
    guidance_scale_option,
    option,
    sampler_option,
    steps_option,
)
from .rows import common_batch, device_and_dtype, to_batch


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
        "varied, too high is garish.",
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
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample pictures that have the given embeddings.

    Every input with one row serves all pictures; picture i is the one that seed + i gives alone.

    Args:
        embedding: [1 or B, D], in the decoder's CLIP space; None for a decoder that takes none (GLIDE's).
        text: captions, 1 or B; used only by decoders that read text.
        batch_size: number B of pictures where the inputs have one row.
        noise: [1 or B, 3, S, S], the x_T to start from, instead of the one that the seed gives. The noise
            that a sampler adds in its steps is the same with and without it.
        negative_embedding: [1 or B, D], what guidance leads away from, in place of the null embedding.
        negative_text: captions, 1 or B, in place of the null caption. Without guidance (scale 1) both are
            not used.
        callback: called after each step; what it raises ends the sampling.

    Returns:
        [B, 3, S, S] float32 in 0..1, S being the decoder's image size.

    Raises:
        ValueError: another CLIP space, batch sizes that do not match, noise of another shape, or a decoder
            that needs an embedding or a caption and gets none.
    """
    network = decoder.network
    device, _ = device_and_dtype(network)
    conditions = Conditions(embedding, text, negative_embedding, negative_text)
    sizes = {"batch_size": batch_size, **({} if noise is None else {"noise": len(noise)})}
    batch = common_batch(**conditions.sizes(), **sizes)
    schedule = make_schedule(decoder.diffusion.schedule, decoder.diffusion.num_timesteps).respace(
        options.steps
    )
    denoiser = decoder_denoiser(decoder, schedule, conditions, batch, options)
    denoiser = limited(denoiser, decoder, options)

    generators = image_generators(seed, batch)
    shape = (network.config.in_channels, network.config.image_size, network.config.image_size)
    # Drawn also when it is replaced: the noise of the steps must not start with the same numbers as an x_T
    # that came from the same seed.
    x = draw_noise(generators, shape, device)  # [B, 3, S, S]
    if noise is not None:
        if tuple(noise.shape[1:]) != shape:
            raise ValueError(
                f"noise: found shape {tuple(noise.shape)}, expected [batch, {', '.join(map(str, shape))}] "
                f"for this decoder"
            )
        x = to_batch(noise.to(device, torch.float32), batch)
    x = sample(
        options.sampler,
        denoiser,
        x,
        schedule,
        spec=decoder.diffusion,
        generators=generators,
        eta=options.eta,
        callback=callback,
    )
    return ((x + 1) / 2).clamp(0, 1).contiguous()


def null_embedding(decoder: DecoderStage, batch_size: int = 1) -> Embedding:
    """What a decoder sees in training where z_i is dropped: decoded, it gives pictures of the caption alone.

    The vector that the decoder has learnt for it, or zeros (unCLIP, sections 2.1 and 5.1, figure 8). It means
    nothing to other decoders or to CLIP.

    Returns:
        [batch_size, D] float32 on the CPU.

    Raises:
        ValueError: a decoder that takes no image embedding.
    """
    batch = common_batch(batch_size=batch_size)
    conditioning = decoder.network.config.conditioning
    if conditioning is None or conditioning.clip_dim is None:
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} takes no image embedding, so it has none to leave out; "
            f"connect the caption alone"
        )
    null = torch.zeros(conditioning.clip_dim)
    if conditioning.learned_null:
        null = decoder.network.conditioner.null_clip.detach().float().cpu()
    if conditioning.standardised:
        null = decoder.space.unstandardise(null)
    return Embedding(null.repeat(batch, 1), decoder.space)


def decoder_denoiser(
    decoder: DecoderStage,
    schedule: Schedule,
    conditions: Conditions,
    batch: int,
    options: DecodeOptions,
    concat: Tensor | None = None,
) -> Denoiser:
    """The guided denoiser of B rows that sampling runs on; its x0 is not clamped yet.

    Conditions, and with them all keys and values of the context, are computed here, once for all steps.

    Args:
        concat: [B, C, S, S] for networks with ``concat_channels``, the same in both branches of guidance.
            None is a picture of which nothing is known, for networks that were trained to inpaint.
    """
    network = decoder.network
    config = network.config
    if concat is None and config.concat_channels:
        device, _ = device_and_dtype(network)
        size = (config.image_size, config.image_size)
        concat = torch.zeros(batch, config.concat_channels, *size, device=device)
    conditional, null = decoder_conditions(decoder, conditions, batch, options.guidance_scale != 1)
    running = with_packed_weights(network) if options.pack_weights else network

    def denoiser(condition: UNetCondition) -> NetworkDenoiser:
        return NetworkDenoiser(_call(running, schedule, condition, concat), schedule, decoder.diffusion)

    if null is None:
        return denoiser(conditional)
    return GuidedDenoiser(
        denoiser(conditional),
        denoiser(UNetCondition.cat(conditional, null)),
        schedule,
        options.guidance_scale,
        options.guidance_interval,
        options.guidance_rescale,
    )


def decoder_conditions(
    decoder: DecoderStage, given: Conditions, batch: int, guided: bool
) -> tuple[UNetCondition, UNetCondition | None]:
    """The conditions of the B conditional rows, and of as many null (or negative) rows when guided."""
    network = decoder.network
    config = network.config.conditioning
    if config is None:
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} takes no conditions, so it cannot decode an embedding"
        )
    _require_embedding(decoder, config, given.embedding, "embedding")
    reads_text = config.text_dim is not None or config.text_pooled_dim is not None
    empty_caption = reads_text and config.null_text == "empty_caption"
    if empty_caption and (given.text is None or given.text.null is None):
        raise ValueError("text: this decoder needs a caption; connect an encoded one, which may be empty")
    if given.negative_embedding is not None:
        _require_embedding(decoder, config, given.negative_embedding, "negative_embedding")
    for name, text in (("text", given.text), ("negative_text", given.negative_text)):
        if reads_text and text is not None:
            require_same_space(name, text.space, decoder.space)

    def condition(name: str, embedding: Embedding | None, text: TextFeatures | None) -> UNetCondition:
        inputs = text_inputs(network, text if reads_text else None, batch)
        if embedding is not None:
            inputs["clip_embedding"] = _embedding_input(decoder, config, name, embedding, batch)
        return network.condition(batch=batch, **inputs)

    conditional = condition("embedding", given.embedding, given.text)
    if not guided:
        return conditional, None
    null_text = given.text.null if empty_caption and given.text is not None else None
    negative = null_text if given.negative_text is None else given.negative_text
    return conditional, condition("negative_embedding", given.negative_embedding, negative)


def _require_embedding(
    decoder: DecoderStage, config: ConditioningConfig, embedding: Embedding | None, name: str
) -> None:
    """Raise a ValueError unless an embedding is there, of the decoder's space, exactly if it takes one."""
    takes_one = config.clip_dim is not None
    if takes_one and embedding is None:
        raise ValueError(
            f"{name}: this decoder paints image embeddings, and none is given; connect one, from a prior or "
            f"from encoded pictures"
        )
    if not takes_one and embedding is not None:
        raise ValueError(
            f"{name}: this decoder paints captions and takes no image embedding; disconnect it, and connect "
            f"a caption that the decoder's own text encoder has encoded"
        )
    if embedding is not None:
        require_same_space(name, embedding.space, decoder.space)


def _embedding_input(
    decoder: DecoderStage, config: ConditioningConfig, name: str, embedding: Embedding, batch: int
) -> Tensor:
    device, dtype = device_and_dtype(decoder.network)
    vectors = embedding.in_norm_of(decoder.space, name).to(device, torch.float32)
    if config.standardised:
        vectors = decoder.space.standardise(vectors)
    return to_batch(vectors, batch).to(dtype)


def text_inputs(network: UNet, text: TextFeatures | None, batch: int) -> dict[str, Tensor]:
    """What ``UNet.condition`` takes of captions, for a batch; nothing where there are none."""
    if text is None:
        return {}
    device, dtype = device_and_dtype(network)
    text = text.to(device).expand(batch)
    # Padding is masked out, so what lies behind the longest caption can be left out altogether.
    length = int(text.mask.any(dim=0).nonzero().max()) + 1
    return {
        "text_tokens": text.tokens[:, :length].to(dtype),
        "text_mask": text.mask[:, :length],
        "text_pooled": text.pooled.to(dtype),
    }


def _call(
    network: UNet, schedule: Schedule, condition: UNetCondition, concat: Tensor | None
) -> Callable[[Tensor, int], Tensor]:
    """The network as a function of x_t and the index into the schedule."""
    device, dtype = device_and_dtype(network)
    if concat is not None:
        concat = concat.to(device, dtype, memory_format=torch.channels_last)

    def call(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), int(schedule.timesteps[step]), device=device)
        beside = None if concat is None else concat.repeat(len(x) // len(concat), 1, 1, 1)
        return network(x.to(dtype, memory_format=torch.channels_last), t, condition, concat=beside)

    return call


def limited(denoiser: Denoiser, decoder: DecoderStage, options: DecodeOptions) -> Denoiser:
    """A denoiser whose x0 is kept in the range of pictures, as the options say."""
    limit = decoder.diffusion.clip_x0
    if options.dynamic_threshold is not None:
        return DynamicThresholdDenoiser(denoiser, options.dynamic_threshold, limit or 1.0)
    return denoiser if limit is None else ClampedDenoiser(denoiser, limit)
