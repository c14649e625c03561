"""CLIP image embeddings → pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.denoiser import ClampedDenoiser, Denoiser, DynamicThresholdDenoiser, NetworkDenoiser
from ..diffusion.guidance import GuidedDenoiser
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.samplers import SAMPLERS, StepCallback, sample
from ..diffusion.schedule import Schedule, make_schedule
from ..embeddings.space import Embedding, TextFeatures, require_same_space
from ..networks.unet import UNet, UNetCondition
from ..stages import DecoderStage
from .running import common_batch, device_and_dtype, to_batch


@dataclass(frozen=True)
class DecodeOptions:
    """How a decoder is sampled.

    Attributes:
        steps: of the sampler.
        guidance_scale: 1 is the plain conditional prediction, at half the cost; larger values follow the
            embedding more closely, with less variety.
        guidance_interval: guide only at noise levels in this range of 0 (clean) to 1 (noise).
        guidance_rescale: 0..1, how far the contrast that guidance adds is taken back.
        sampler: one of ``core.diffusion.samplers.SAMPLERS``.
        eta: 0..1, noise that ddim adds in each step.
        dynamic_threshold: quantile of |x0| that is scaled into the range of pictures (Imagen, section 2.3);
            None clamps.
    """

    steps: int = 25
    guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    eta: float = 0.0
    dynamic_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}; expected 0 or more, 1 for no guidance"
            )
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval is {low} to {high}; expected a range within 0 to 1")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.guidance_rescale}; expected 0 to 1")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r} is not known; choose one of {', '.join(SAMPLERS)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; expected 0 to 1")
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold <= 1:
            raise ValueError(
                f"dynamic_threshold is {self.dynamic_threshold}; expected a quantile within 0 to 1, or none"
            )


@torch.no_grad()
def decode(
    decoder: DecoderStage,
    embedding: Embedding,
    text: TextFeatures | None = None,
    *,
    seed: int,
    batch_size: int = 1,
    options: DecodeOptions = DecodeOptions(),
    noise: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample pictures that have the given embeddings.

    Every input with one row serves all pictures; picture i is the one that seed + i gives alone.

    Args:
        embedding: [1 or B, D], in the decoder's CLIP space.
        text: captions, 1 or B; used only by decoders that read text.
        batch_size: number B of pictures where the inputs have one row.
        noise: [1 or B, 3, S, S], the x_T to start from, instead of the one that the seed gives. The noise
            that a sampler adds in its steps is the same with and without it.
        callback: called after each step; what it raises ends the sampling.

    Returns:
        [B, 3, S, S] float32 in 0..1, S being the decoder's image size.

    Raises:
        ValueError: another CLIP space, batch sizes that do not match, noise of another shape, or a decoder
            that needs a caption and gets none.
    """
    network: UNet = decoder.network
    device, _ = device_and_dtype(network)
    sizes = {"embedding": len(embedding), "batch_size": batch_size}
    if text is not None:
        sizes["text"] = len(text)
    if noise is not None:
        sizes["noise"] = len(noise)
    batch = common_batch(**sizes)
    schedule = make_schedule(decoder.diffusion.schedule, decoder.diffusion.num_timesteps).respace(
        options.steps
    )
    denoiser = _limited(
        decoder_denoiser(decoder, schedule, embedding, text, batch, options), decoder, options
    )

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


def decoder_denoiser(
    decoder: DecoderStage,
    schedule: Schedule,
    embedding: Embedding,
    text: TextFeatures | None,
    batch: int,
    options: DecodeOptions,
) -> Denoiser:
    """The guided denoiser of B rows that sampling runs on; its x0 is not clamped yet.

    Conditions, and with them all keys and values of the context, are computed here, once for all steps.
    """
    require_same_space("embedding", embedding.space, decoder.space)
    network: UNet = decoder.network
    conditional, null = _conditions(decoder, embedding, text, batch, guided=options.guidance_scale != 1)

    def denoiser(condition: UNetCondition) -> NetworkDenoiser:
        return NetworkDenoiser(_call(network, schedule, condition), schedule, decoder.diffusion)

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


def _conditions(
    decoder: DecoderStage, embedding: Embedding, text: TextFeatures | None, batch: int, guided: bool
) -> tuple[UNetCondition, UNetCondition | None]:
    """The conditions of the B conditional rows, and of as many null rows when guided."""
    network: UNet = decoder.network
    config = network.config.conditioning
    if config is None:
        raise ValueError(
            f"{decoder.source or 'this decoder'}: takes no conditions, so it cannot decode an embedding"
        )
    device, dtype = device_and_dtype(network)
    vectors = embedding.vectors.to(device, torch.float32)
    if config.standardised:
        vectors = decoder.space.standardise(vectors)
    reads_text = config.text_dim is not None or config.text_pooled_dim is not None
    empty_caption = reads_text and config.null_text == "empty_caption"
    if empty_caption and (text is None or text.null is None):
        raise ValueError("text: this decoder needs a caption; connect an encoded one, which may be empty")
    if text is not None and reads_text:
        require_same_space("text", text.space, decoder.space)
    else:
        text = None

    conditional = network.condition(
        batch=batch,
        clip_embedding=to_batch(vectors, batch).to(dtype),
        **_text_inputs(network, text, batch),
    )
    if not guided:
        return conditional, None
    null_text = text.null if empty_caption else None
    return conditional, network.condition(batch=batch, **_text_inputs(network, null_text, batch))


def _text_inputs(network: UNet, text: TextFeatures | None, batch: int) -> dict[str, Tensor]:
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


def _call(network: UNet, schedule: Schedule, condition: UNetCondition) -> Callable[[Tensor, int], Tensor]:
    """The network as a function of x_t and the index into the schedule."""
    device, dtype = device_and_dtype(network)

    def call(x: Tensor, step: int) -> Tensor:
        t = torch.full((len(x),), int(schedule.timesteps[step]), device=device)
        return network(x.to(dtype, memory_format=torch.channels_last), t, condition)

    return call


def _limited(denoiser: Denoiser, decoder: DecoderStage, options: DecodeOptions) -> Denoiser:
    limit = decoder.diffusion.clip_x0
    if options.dynamic_threshold is not None:
        return DynamicThresholdDenoiser(denoiser, options.dynamic_threshold, limit or 1.0)
    return denoiser if limit is None else ClampedDenoiser(denoiser, limit)
