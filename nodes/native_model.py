"""A decoder as a MODEL for ComfyUI's own samplers, and its conditions as CONDITIONING.

ComfyUI samples x_t / √ᾱ, the variance-exploding form, with σ = √((1−ᾱ)/ᾱ); its model classes scale the input
and turn the network's output into x̂_0. What they leave to this file: the decoder's own schedule, conditions
that are computed once for all steps, and the range of x̂_0. A learned variance is not used: ComfyUI's samplers
have a noise of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.diffusion.schedule import schedule_of
from ..core.embeddings.batches import common_batch
from ..core.embeddings.space import Embedding, TextFeatures
from ..core.networks.unet import UNet, UNetCondition
from ..core.pipelines.conditioning import decoder_conditions
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.rows import device_and_dtype, to_batch
from ..core.stages import DecoderStage
from . import host
from .placement import take_off_unless_loaded

CONDITION_KEY = "unclip_decoder_condition"

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: pairs of a tensor of tokens [B, N, C] and a dictionary."""


@dataclass(frozen=True, eq=False)
class NativeCondition:
    """What a CONDITIONING holds for a decoder.

    Attributes:
        condition: of B rows, on the CPU.
        tokens: [B, 1, D] the embeddings, zeros where there are none: also the tensor of the CONDITIONING,
            by which changes are seen that other nodes made to it.
        network: the decoder's, for which alone the condition is good.
    """

    condition: UNetCondition
    tokens: Tensor
    network: UNet


class NativeNetwork(nn.Module):
    """A decoder's network as ComfyUI calls its own."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    @property
    def dtype(self) -> torch.dtype:
        return device_and_dtype(self.network)[1]

    def forward(self, x: Tensor, t: Tensor, *, condition: UNetCondition, **_: Any) -> Tensor:
        """x_t [B, 3, H, W] and timesteps [B] → what the network was trained to predict, [B, 3, H, W].

        Raises:
            ValueError: a latent of another size than that of the decoder's pictures.
        """
        config = self.network.config
        height, width = x.shape[2:]
        if config.fixed_size and (height, width) != (config.image_size, config.image_size):
            raise ValueError(
                f"latent_image: found {width}×{height} pixels, but this decoder paints {config.image_size}×"
                f"{config.image_size}, and its latent is the picture itself. Start from "
                f"EmptyChromaRadianceLatentImage with width and height {config.image_size}."
            )
        concat = None
        if config.concat_channels:  # networks that were trained to inpaint: nothing of the picture is known
            concat = x.new_zeros(len(x), config.concat_channels, height, width)
        output = self.network(x.contiguous(memory_format=torch.channels_last), t, condition, concat=concat)
        return output[:, : config.in_channels]  # the rest is the learned variance


def native_model(decoder: DecoderStage) -> Any:
    """A decoder as ComfyUI's MODEL. The network is shared, not copied.

    Raises:
        ValueError: outside ComfyUI.
    """
    comfy = host.native_sampling()
    if decoder.autoencoder is not None:
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} paints latents of its own autoencoder, which ComfyUI's "
            f"samplers cannot be given yet. Paint with unCLIP Decode instead"
        )
    spec = decoder.diffusion
    native, v = _model_class(comfy), spec.prediction == "v"
    model = native(_config(comfy), comfy.ModelType.V_PREDICTION if v else comfy.ModelType.EPS)
    model.diffusion_model = NativeNetwork(decoder.network)
    model.model_sampling = _sampling(comfy, decoder)
    patcher = comfy.ModelPatcher(
        model,
        load_device=comfy.models.get_torch_device(),
        offload_device=comfy.models.unet_offload_device(),
    )
    patcher.add_callback(comfy.Callbacks.ON_CLEANUP, take_off_unless_loaded)  # after the steps
    if spec.clip_x0 is not None:
        patcher.set_model_sampler_post_cfg_function(_clamp(spec.clip_x0))
    return patcher


def native_conditioning(
    decoder: DecoderStage, embedding: Embedding | None, text: TextFeatures | None
) -> tuple[Conditioning, Conditioning]:
    """The conditions of a decoder, and its null conditions, as ComfyUI's CONDITIONING.

    Raises:
        ValueError: as ``decode`` does for embeddings and captions that do not fit.
    """
    given = Conditions(embedding, text)
    batch = common_batch(**given.sizes(), rows=1)
    # Any scale but 1 asks for the null condition too.
    conditional, null = decoder_conditions(decoder, given, batch, True)
    dim = decoder.space.dim
    tokens = torch.zeros(batch, 1, dim)
    shown = tokens if embedding is None else to_batch(embedding.vectors.float().cpu()[:, None], batch)
    return tuple(
        [[rows, {CONDITION_KEY: NativeCondition(each.map(Tensor.cpu), rows, decoder.network)}]]
        for each, rows in ((conditional, shown), (null, tokens))
    )


def _clamp(limit: float) -> Callable[[dict[str, Any]], Tensor]:
    return lambda given: given["denoised"].clamp(-limit, limit)


def _sampling(comfy: SimpleNamespace, decoder: DecoderStage) -> nn.Module:
    """ComfyUI's algebra of a prediction type, over the decoder's schedule."""
    sampling, spec = comfy.sampling, decoder.diffusion
    algebra = {"eps": sampling.EPS, "v": sampling.V_PREDICTION, "x0": sampling.X0}[spec.prediction]

    class DecoderSampling(sampling.ModelSamplingDiscrete, algebra):
        pass

    made = DecoderSampling()
    # Its own "squaredcos_cap_v2" cannot be built, so the table replaces that of the default schedule.
    alphas_cumprod = schedule_of(spec).alphas_cumprod
    made.set_sigmas(((1 - alphas_cumprod) / alphas_cumprod).sqrt())
    made.num_timesteps = spec.num_timesteps
    return made


def _config(comfy: SimpleNamespace) -> Any:
    class PictureLatent(comfy.LatentFormat):
        latent_channels = 3
        latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # for live previews

    class DecoderConfig(comfy.Config):
        latent_format = PictureLatent

    return DecoderConfig({"disable_unet_model_creation": True})


def _model_class(comfy: SimpleNamespace) -> type:
    class BatchCondition(comfy.Condition):
        """A ``UNetCondition`` that ComfyUI can spread over a batch and join with others."""

        def process_cond(self, batch_size: int, **_: Any) -> BatchCondition:
            rows = self.cond.batch
            if rows not in (1, batch_size):
                raise ValueError(
                    f"latent_image: found {batch_size} latents for {rows} embeddings. Set the batch size of "
                    f"the empty latent to {rows}."
                )
            return BatchCondition(self.cond.map(lambda value: to_batch(value, batch_size)))

        def can_concat(self, other: BatchCondition) -> bool:
            return True

        def concat(self, others: list[BatchCondition]) -> UNetCondition:
            return reduce(UNetCondition.cat, (other.cond for other in others), self.cond)

        def size(self) -> list[int]:
            return [self.cond.batch]

    class DecoderModel(comfy.BaseModel):
        def extra_conds(self, **given: Any) -> dict[str, BatchCondition]:
            """Called once before the steps, for each CONDITIONING."""
            found, device = given.get(CONDITION_KEY), given["device"]
            network = self.diffusion_model.network
            if found is None or found.network is not network:
                raise ValueError(
                    "conditioning: it was not made for this decoder. Connect to positive and negative of the "
                    "sampler the outputs positive and negative of unCLIP Decoder as Model."
                )
            if not _same(given.get("cross_attn"), found.tokens):
                raise ValueError(
                    "conditioning: a node between unCLIP Decoder as Model and the sampler changed it in a "
                    "way that this decoder cannot follow. Mix embeddings with unCLIP Blend or unCLIP "
                    "Interpolate before they are made a conditioning."
                )
            # unCLIP's own nodes move the same network, and with little memory, or --novram, ComfyUI leaves a
            # part of it on the CPU: after the steps it goes back there.
            self.diffusion_model.to(device)
            return {"condition": BatchCondition(found.condition.map(lambda value: value.to(device)))}

    return DecoderModel


def _same(tokens: Tensor | None, expected: Tensor) -> bool:
    return tokens is not None and tokens.shape == expected.shape and bool((tokens.cpu() == expected).all())
