"""Karlo and Kandinsky in diffusers' layout: a folder for each network, with a JSON config beside its weights.

The weights name neither the number of heads nor the size of pictures; ``config.json`` does. Where a file lies
alone, the values of Karlo stand in. What a stage needs beside its own file (the projections of the decoder,
the second network of the upsampler, the schedulers) is taken from the neighbouring folders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...networks.conditioning import ConditioningConfig
from ...networks.diffusion_prior import EXTRA_TOKENS, DiffusionPrior, DiffusionPriorConfig
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...networks.unet_pair import UNetPair, UNetPairConfig
from ...stages import DecoderStage, PriorStage, UpsamplerStage, require_low_size
from ..files.weight_source import WeightSource, join_sources
from ..mapping.keymap import Rule, count_layers, load_network, shape_of
from ..mapping.prior_rules import TIME_RULES, transformer_rules
from ..mapping.spaces import clip_space, space_id
from ..mapping.unet_rules import diffusers_config, diffusers_rules
from . import karlo
from .diffusers_files import (
    CONFIG,
    SCHEDULERS,
    neighbours,
    open_component,
    read_config,
    read_number,
    read_scheduler,
    scheduler_folder,
)
from .diffusers_settings import DECODER_SETTINGS, PRIOR_SETTINGS, UPSAMPLER_SETTINGS
from .layout import Layout, has_keys

# Of the conversions: Karlo's clamps x0 to ±5, unlike the original; Kandinsky 2.2's, 1280 wide, to ±10.
_PRIOR_CLAMP = {1280: 10.0}
_DEFAULT_PRIOR_CLAMP = 5.0

# Diffusers' class of a U-Net by default, which counts where a config leaves the number out.
_DEFAULT_HEAD_DIM = 8
_DEFAULT_HEADS = 32
HEADS_OPTION = "num_attention_heads"

_TEXT_PROJ, _UNET = "text_proj.", "decoder."
_UPSAMPLERS = {"super_res_first.": "first.", "super_res_last.": "last."}


# --- prior ---


def prior_config(source: WeightSource) -> DiffusionPriorConfig:
    """The shape of the prior from its weights and its config.json."""
    shape = transformer_shape(source, EXTRA_TOKENS)
    default, folder = max(1, shape["width"] // karlo.HEAD_DIM), source.path.parent
    config = read_config(folder, PRIOR_SETTINGS)
    heads = read_number(config, HEADS_OPTION, _DEFAULT_HEADS if config else default, folder)
    return DiffusionPriorConfig(**shape, heads=heads)


def transformer_shape(source: WeightSource, extra_tokens: int) -> dict[str, Any]:
    """What the weights of a ``PriorTransformer`` tell of its config: all but the number of heads.

    Args:
        extra_tokens: positions that are not the caption's.
    """
    width, dim = shape_of(source, "proj_in.weight", 2)
    return {
        "dim": dim,
        "text_dim": shape_of(source, "encoder_hidden_states_proj.weight", 2)[1],
        "width": width,
        "layers": count_layers(source, "transformer_blocks.{n}.norm1.weight"),
        "text_length": shape_of(source, "positional_embedding", 3)[1] - extra_tokens,
        "mlp_ratio": shape_of(source, "transformer_blocks.0.ff.net.0.proj.weight", 2)[0] / width,
    }


def load_prior(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> PriorStage:
    """The prior, with the statistics that it carries."""
    config = prior_config(source)
    if not any(name in source.shapes for name in ("clip_mean", "clip_std")):
        raise ValueError(
            f"{source.path}: is an operator of pOps, a prior without its own statistics; choose it in unCLIP "
            f"Operator, with Kandinsky 2.2's prior connected there"
        )
    rules = [*transformer_rules("image_in"), *TIME_RULES]
    network = load_network(lambda: DiffusionPrior(config), source, rules, device=device, dtype=dtype)
    space = clip_space(config.dim, mean=source.tensor("clip_mean"), std=source.tensor("clip_std"))
    default = replace(karlo.PRIOR_DIFFUSION, clip_x0=_PRIOR_CLAMP.get(config.dim, _DEFAULT_PRIOR_CLAMP))
    diffusion = read_scheduler(scheduler_folder(source.path.parent.parent, "prior"), default)
    return PriorStage(network, space, diffusion, str(source.path))


# --- decoder ---


def decoder_config(source: WeightSource) -> UNetConfig:
    """The shape of the decoder from its weights, those of its text projection, and its config.json."""
    return _decoder_config(_with_text_projection(source, None))


def _decoder_config(source: WeightSource) -> UNetConfig:
    folder = source.path.parent
    config = read_config(folder, DECODER_SETTINGS)
    context_dim, text_dim = shape_of(source, f"{_TEXT_PROJ}encoder_hidden_states_proj.weight", 2)
    tokens, clip_dim = shape_of(source, f"{_TEXT_PROJ}clip_extra_context_tokens_proj.weight", 2)
    conditioning = ConditioningConfig(
        clip_dim=clip_dim,
        clip_tokens=tokens // context_dim,
        text_dim=text_dim,
        text_pooled_dim=shape_of(source, f"{_TEXT_PROJ}embedding_proj.weight", 2)[1],
        context_dim=context_dim,
        null_text="empty_caption",
    )
    return diffusers_config(
        source,
        _UNET,
        image_size=read_number(config, "sample_size", karlo.IMAGE_SIZE, folder),
        head_dim=read_number(
            config, "attention_head_dim", _DEFAULT_HEAD_DIM if config else karlo.HEAD_DIM, folder
        ),
        conditioning=conditioning,
    )


def text_projection_rules(clip_tokens: int, source: str = "", target: str = "") -> list[Rule]:
    """Rules for ``UnCLIPTextProjModel``, our ``Conditioner``; prefixes as of :func:`diffusers_rules`."""
    names = {
        "learned_classifier_free_guidance_embeddings": "null_clip",
        "clip_image_embeddings_project_to_time_embeddings": "clip_embedding",
        "embedding_proj": "text_embedding",
        "encoder_hidden_states_proj": "text_context",
        "text_encoder_hidden_states_norm": "text_norm",
    }
    tokens = karlo.token_by_token(clip_tokens)
    return [
        *(Rule(source + theirs, target + ours) for theirs, ours in names.items()),
        Rule(f"{source}clip_extra_context_tokens_proj", f"{target}clip_context", tokens),
    ]


def load_decoder(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> DecoderStage:
    """The decoder, with the projections from the folder ``text_proj`` beside its own."""
    joined = _with_text_projection(source, dtype)
    config = _decoder_config(joined)
    rules = diffusers_rules(config, _UNET)
    rules += text_projection_rules(config.conditioning.clip_tokens, _TEXT_PROJ, "conditioner.")
    network = load_network(lambda: UNet(config), joined, rules, device=device, dtype=dtype)
    diffusion = read_scheduler(
        scheduler_folder(source.path.parent.parent, "decoder"), karlo.DECODER_DIFFUSION
    )
    space = clip_space(config.conditioning.clip_dim)
    return DecoderStage(network, space, diffusion, str(source.path))


def _with_text_projection(source: WeightSource, dtype: torch.dtype | None) -> WeightSource:
    projection = open_component(source.path.parent.parent / "text_proj", dtype)
    return join_sources(source.path, [(_UNET, source), (_TEXT_PROJ, projection)])


# --- upsampler ---


def upsampler_config(source: WeightSource) -> UNetPairConfig:
    """The shape of both networks of the upsampler from the weights of one and its config.json."""
    folder = source.path.parent
    size = read_number(read_config(folder, UPSAMPLER_SETTINGS), "sample_size", karlo.UPSAMPLED_SIZE, folder)
    return karlo.pair_config(diffusers_config(source, "", image_size=size))


def load_upsampler(
    source: WeightSource, device: torch.device | str, dtype: torch.dtype | None
) -> UpsamplerStage:
    """The upsampler from the folders ``super_res_first`` and ``super_res_last``, whichever was chosen."""
    root = source.path.parent.parent
    parts = [(name, open_component(root / name.rstrip("."), dtype)) for name in _UPSAMPLERS]
    config = upsampler_config(parts[0][1])
    if upsampler_config(parts[1][1]) != config:
        raise ValueError(
            f"{parts[1][1].path}: is another kind of network than {parts[0][1].path}, expected two of one "
            f"shape. They belong to different models: download the whole model again"
        )
    rules = [rule for names in _UPSAMPLERS.items() for rule in diffusers_rules(config, *names)]
    joined = join_sources(root, parts)
    network = load_network(lambda: UNetPair(config), joined, rules, device=device, dtype=dtype)
    diffusion = read_scheduler(root / "super_res_scheduler", karlo.UPSAMPLER_DIFFUSION)
    low_size = read_number(read_config(root / "decoder"), "sample_size", config.image_size // 4, root)
    require_low_size(low_size, config.image_size)
    return UpsamplerStage(network, low_size, diffusion, karlo.UPSAMPLER_TIMESTEPS, str(source.path))


# --- the neighbours of a file ---


def _other_network(source: WeightSource) -> list[WeightSource]:
    """Of the upsampler's two networks the one that a source is not."""
    names = (name.rstrip(".") for name in _UPSAMPLERS)
    return neighbours(source, *(name for name in names if name != source.path.parent.name))


def _is_decoder(source: WeightSource) -> bool:
    """Karlo's decoder has context in its attention, and no embeddings beside (those of others have)."""
    names = source.shapes
    if not all(name in names for name in ("conv_in.weight", "conv_norm_out.weight")):
        return False
    others = ("add_embedding.", "encoder_hid_proj.", "class_embedding.")
    return any(name.endswith(".add_k_proj.weight") for name in names) and not any(
        name.startswith(others) for name in names
    )


def _is_upsampler(source: WeightSource) -> bool:
    """Karlo's upsampler has resampling residual blocks, no attention, and a second picture as its input."""
    names = source.shapes
    inputs, outputs = names.get("conv_in.weight", ()), names.get("conv_out.weight", ())
    return (
        len(inputs) == len(outputs) == 4
        and inputs[1] == 2 * outputs[0]
        and "conv_norm_out.weight" in names
        and "down_blocks.0.downsamplers.0.conv1.weight" in names
        and not any(".attentions." in name for name in names)
    )


DIFFUSERS_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="Karlo or Kandinsky prior (diffusers)",
        stage="prior",
        matches=has_keys("prd_embedding", "proj_to_clip_embeddings.weight", "time_embedding.linear_1.weight"),
        load=load_prior,
        config=prior_config,
        space=lambda source: space_id(prior_config(source).dim),
        licence="CreativeML OpenRAIL-M (Karlo), Apache-2.0 (Kandinsky)",
        reads=(SCHEDULERS,),
    ),
    Layout(
        name="Karlo decoder (diffusers)",
        stage="decoder",
        matches=_is_decoder,
        load=load_decoder,
        config=decoder_config,
        space=lambda source: space_id(decoder_config(source).conditioning.clip_dim),
        licence="CreativeML OpenRAIL-M",
        beside=lambda source: neighbours(source, _TEXT_PROJ.rstrip(".")),
        reads=(SCHEDULERS, f"../{_TEXT_PROJ.rstrip('.')}/*"),
    ),
    Layout(
        name="Karlo upsampler 64 to 256 (diffusers)",
        stage="upsampler",
        matches=_is_upsampler,
        load=load_upsampler,
        config=upsampler_config,
        licence="CreativeML OpenRAIL-M",
        beside=_other_network,
        reads=(SCHEDULERS, f"../decoder/{CONFIG}", *(f"../{name.rstrip('.')}/*" for name in _UPSAMPLERS)),
    ),
)
