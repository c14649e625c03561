"""A decoder as a MODEL for ComfyUI's own samplers, and its conditions as CONDITIONING.

ComfyUI samples x_t / √ᾱ, the variance-exploding form, with σ = √((1−ᾱ)/ᾱ); its model classes scale the input
and turn the network's output into x̂_0. What they leave to this file: the decoder's own schedule, conditions
that are computed once for all steps, and the range of x̂_0. A learned variance is not used: ComfyUI's samplers
have a noise of their own. The latent is what the network paints: the picture itself, or the latent of the
decoder's autoencoder, not scaled.

The network is shared with unCLIP's own nodes. Nodes that change weights (Model Merge) put others into its
modules, so that it gets modules of its own before they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.diffusion.schedule import schedule_of
from ..core.embeddings.batches import common_batch
from ..core.networks.dalle2_unet import Dalle2UNet
from ..core.networks.unet import UNet, UNetCondition
from ..core.pipelines.canvas import preview_map
from ..core.pipelines.composite import shrink_mask
from ..core.pipelines.conditioning import decoder_conditions, hint_input
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.inpaint import sees_mask
from ..core.pipelines.rows import masked_picture, to_batch
from ..core.stages import DecoderStage
from . import host
from .native_network import Around, Forward, NativeNetwork, OfDecoder
from .placement import take_off_unless_loaded

CONDITION_KEY = "unclip_decoder_condition"

_NUMBERS = cycle(range(1, 2**20))  # of conditions, exact in float32

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: pairs of a tensor of tokens [B, N, C] and a dictionary."""


@dataclass(frozen=True, eq=False)
class NativeCondition:
    """What a CONDITIONING holds for a decoder.

    Attributes:
        condition: of B rows, on the CPU; without what is made of a hint, which depends on the size.
        tokens: [B, 2, D] the embeddings, zeros where there are none, and a number of this condition's own, 0
            for that of nothing: also the tensor of the CONDITIONING, by which changes are seen that other
            nodes made to it. Embeddings alone would not tell two captions, or two hints, apart.
        decoder: for which alone the condition is good.
        hint: [1 or B, 3, H, W] in 0..1, of a decoder that takes one.
    """

    condition: UNetCondition
    tokens: Tensor
    decoder: DecoderStage
    hint: Tensor | None = None


def native_model(decoder: DecoderStage) -> Any:
    """A decoder as ComfyUI's MODEL. The weights are shared, not copied.

    Raises:
        ValueError: outside ComfyUI.
    """
    comfy = host.native_sampling()
    spec = decoder.diffusion
    native, v = _model_class(comfy), spec.prediction == "v"
    model = native(_config(comfy, decoder), comfy.ModelType.V_PREDICTION if v else comfy.ModelType.EPS)
    model.diffusion_model = NativeNetwork(decoder.network, decoder.scale, _around(comfy))
    model.model_sampling = _sampling(comfy, decoder)
    patcher = _patcher_class(comfy)(
        model,
        load_device=comfy.models.get_torch_device(),
        offload_device=comfy.models.unet_offload_device(),
    )
    patcher.add_callback(comfy.Callbacks.ON_CLEANUP, take_off_unless_loaded)  # after the steps
    if spec.clip_x0 is not None:
        patcher.set_model_sampler_post_cfg_function(_clamp(spec.clip_x0))
    return patcher


def _around(comfy: SimpleNamespace) -> Around:
    def wrapped(forward: Forward, network: nn.Module, options: Mapping[str, Any]) -> Forward:
        kind = comfy.patching.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patching.get_all_wrappers(kind, options)
        return comfy.patching.WrapperExecutor.new_class_executor(forward, network, wrappers).execute

    return wrapped


def _patcher_class(comfy: SimpleNamespace) -> type:
    class DecoderPatcher(comfy.ModelPatcher):
        def add_patches(self, *args: Any, **options: Any) -> list[Any]:
            """Changes of weights: of a merge, or a LoRA. ComfyUI puts them into the modules when it loads."""
            taken = super().add_patches(*args, **options)
            if taken:
                self.model.diffusion_model.take_apart()
            return taken

    return DecoderPatcher


def _require_area(decoder: DecoderStage, area: Sequence[int] | None, noise: Tensor) -> None:
    """Raise a ValueError for a condition that holds in an area only, in which the decoder cannot paint.

    Args:
        area: height, width, top and left in places of the latent, as ComfyUI's sampler has them; it cuts what
            reaches out of the latent off.
    """
    if area is None:
        return
    dims = len(area) // 2
    sides = [
        min(length, whole - start)
        for length, start, whole in zip(area[:dims], area[dims:], noise.shape[2:], strict=True)
    ]
    config, scale = decoder.network.config, decoder.scale
    if config.fixed_size and sides != [config.image_size] * 2:
        fitting = f"paints whole pictures of {config.image_size}×{config.image_size} alone"
    elif any(side % config.multiple_of for side in sides):
        fitting = f"paints multiples of {scale * config.multiple_of}"
    else:
        return
    raise ValueError(
        f"conditioning: it holds in an area of {scale * sides[1]}×{scale * sides[0]} pixels only "
        f"(Conditioning (Set Area), or Conditioning (Set Mask) with mask bounds), but this decoder {fitting}"
        f". Set set_cond_area of Conditioning (Set Mask) to default, or use unCLIP Region with unCLIP Decode"
    )


def native_conditioning(decoder: DecoderStage, given: Conditions) -> tuple[Conditioning, Conditioning]:
    """The conditions of a decoder, and its null (or negative) conditions, as ComfyUI's CONDITIONING.

    Raises:
        ValueError: as ``decode`` does for embeddings, captions and hints that do not fit; also without
            anything that stands for no embedding.
    """
    network = decoder.network
    batch = common_batch(**given.sizes(), rows=1)
    conditioning = network.config.conditioning
    if given.negative_embedding is None and conditioning is not None and not conditioning.null_known:
        raise ValueError(
            f"negative_embedding: the negative condition is the CLIP embedding of an all-zero picture, which "
            f"{decoder.source or 'this decoder'} does not hold. Connect one from unCLIP Null Embedding with "
            f"the CLIP model of the prior, or load decoder and prior as one bundle."
        )
    # Any scale but 1 asks for the null condition too. The size counts for hints only, see ``extra_conds``.
    smallest = decoder.scale * network.config.multiple_of
    both = decoder_conditions(decoder, given, batch, True, (smallest, smallest))
    hint = given.hint if _takes_hint(network) else None
    made: list[Conditioning] = []
    shown = ((given.embedding, given.text), (given.negative_embedding, given.negative_text))
    for condition, (embedding, text) in zip(both, shown, strict=True):
        assert condition is not None, "it was asked for"
        condition = condition if hint is None else replace(condition, layout=None)
        rows = torch.zeros(batch, decoder.space.dim)
        if embedding is not None:
            rows = to_batch(embedding.vectors.float().cpu(), batch)
        nothing = embedding is None and text is None
        number = torch.full_like(rows, 0 if nothing else next(_NUMBERS))
        tokens = torch.stack([rows, number], dim=1)  # [B, 2, D]
        native = NativeCondition(condition.map(Tensor.cpu), tokens, decoder, hint)
        made.append([[tokens, {CONDITION_KEY: native}]])
    positive, negative = made
    return positive, negative


def _takes_hint(network: UNet | Dalle2UNet) -> bool:
    conditioning = network.config.conditioning
    return conditioning is not None and conditioning.hint_channels > 0


def _clamp(limit: float) -> Callable[[dict[str, Any]], Tensor]:
    return lambda given: given["denoised"].clamp(-limit, limit)


def _sampling(comfy: SimpleNamespace, decoder: DecoderStage) -> nn.Module:
    """ComfyUI's algebra of a prediction type, over the decoder's schedule."""
    sampling, spec = comfy.sampling, decoder.diffusion
    algebra = {"eps": sampling.EPS, "v": sampling.V_PREDICTION, "x0": sampling.X0}[spec.prediction]

    class DecoderSampling(OfDecoder, sampling.ModelSamplingDiscrete, algebra):
        of_decoder = True

    made = DecoderSampling()
    # Its own "squaredcos_cap_v2" cannot be built, so the table replaces that of the default schedule.
    alphas_cumprod = schedule_of(spec).alphas_cumprod
    made.set_sigmas(((1 - alphas_cumprod) / alphas_cumprod).sqrt())
    made.num_timesteps = spec.num_timesteps
    return made


def _config(comfy: SimpleNamespace, decoder: DecoderStage) -> Any:
    class Latent(comfy.LatentFormat):
        latent_channels = decoder.network.config.in_channels
        spacial_downscale_ratio = decoder.scale

        @property
        def latent_rgb_factors(self) -> list[list[float]]:
            """[C, 3], for live previews: asked for when a sampler begins and shows any."""
            if decoder.autoencoder is None:
                return [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
            return preview_map(decoder)[:-1].tolist()

        @property
        def latent_rgb_factors_bias(self) -> list[float] | None:
            return None if decoder.autoencoder is None else preview_map(decoder)[-1].tolist()

    class DecoderConfig(comfy.Config):
        latent_format = Latent

    # FreeU asks for the channels; that it cannot be followed is said when the network runs.
    channels = decoder.network.config.channels
    return DecoderConfig({"disable_unet_model_creation": True, "model_channels": channels})


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

    class DecoderModel(OfDecoder, comfy.BaseModel):
        def extra_conds(self, **given: Any) -> dict[str, Any]:
            """Called once before the steps, for each CONDITIONING."""
            found, device, noise = given.get(CONDITION_KEY), given["device"], given["noise"]
            if found is None or not self.diffusion_model.is_of(found.decoder):
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
            if not getattr(self.model_sampling, "of_decoder", False):
                raise ValueError(
                    "model: a node between unCLIP Decoder as Model and the sampler gave it noise levels of "
                    "another model. Take out Model Sampling Discrete, or whichever it is: the decoder brings "
                    "its own noise levels and its kind of prediction."
                )
            _require_area(found.decoder, given.get("area"), noise)
            # unCLIP's own nodes move the same network, and with little memory, or --novram, ComfyUI leaves a
            # part of it on the CPU: after the steps it goes back there.
            self.diffusion_model.to(device)
            made = {"condition": BatchCondition(found.condition.map(lambda value: value.to(device)))}
            # What lies beside the latent is cut with it, where a condition holds in an area only.
            if found.hint is not None:
                made["layout"] = comfy.PlacedCondition(_layout(found, self.diffusion_model.network, noise))
            if sees_mask(found.decoder) and (known := _known(given)) is not None:
                made["known"] = comfy.PlacedCondition(known.to(device))
            return made

        def state_dict_for_saving(self, *_: Any, **__: Any) -> dict[str, Tensor]:
            """Asked for by Save Model and Save Checkpoint."""
            raise ValueError(
                "model: ComfyUI's files have no place for a decoder of unCLIP, and nothing could load what "
                "it would save. Keep the decoder's own file; `unclip convert` writes one from other layouts."
            )

    return DecoderModel


@torch.no_grad()
def _layout(found: NativeCondition, network: UNet | Dalle2UNet, noise: Tensor) -> Tensor:
    """[B, hint channels, H, W], what the network makes of the hint for a latent of this size."""
    decoder = replace(found.decoder, network=network)
    size = (decoder.scale * noise.shape[2], decoder.scale * noise.shape[3])
    hint = hint_input(decoder, found.hint, found.condition.batch, size)
    return decoder.network.conditioner.hint_layout(hint)


def _known(given: dict[str, Any]) -> Tensor | None:
    """[B, C + 1, H, W], what networks that were trained to inpaint see; None without a mask.

    From InpaintModelConditioning, or from what the sampler keeps (VAE Encode for Inpainting, Set Latent Noise
    Mask), where 1 is repainted.
    """
    latent = given.get("concat_latent_image", given.get("latent_image"))
    mask = given.get("concat_mask", given.get("denoise_mask"))
    if latent is None or mask is None:
        return None
    mask = mask.reshape(-1, 1, *mask.shape[-2:]) if mask.ndim < 4 else mask[:, :1]
    repaint = shrink_mask(mask.to(latent.device, torch.float32), tuple(latent.shape[2:])) > 0
    batch = max(len(latent), len(repaint))
    return masked_picture(to_batch(latent.float(), batch), to_batch(repaint, batch))


def _same(tokens: Tensor | None, expected: Tensor) -> bool:
    return tokens is not None and tokens.shape == expected.shape and bool((tokens.cpu() == expected).all())
