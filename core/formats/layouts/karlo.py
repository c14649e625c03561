"""Karlo's original checkpoints (kakaobrain/karlo), and Kandinsky 2.1's prior, which has Karlo's layout.

What the configs of Karlo's repository say and the weights do not is written down here; the statistics of the
CLIP embeddings lie in a file of their own beside the prior.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ...diffusion.spec import DiffusionSpec
from ...embeddings.space import EmbeddingSpace
from ...networks.conditioning import ConditioningConfig
from ...networks.diffusion_prior import EXTRA_TOKENS, DiffusionPrior, DiffusionPriorConfig
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...networks.unet_pair import UNetPair, UNetPairConfig
from ...stages import DecoderStage, PriorStage, UpsamplerStage
from ..files.source import open_weights
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, count_layers, load_network, shape_of, without_batch
from ..mapping.spaces import clip_space, space_id
from ..mapping.unet_rules import heads_last, original_config, original_rules
from .layout import Layout, has_keys

STATISTICS_FILE = "ViT-L-14_stats.th"
_STATISTICS_FILES = "*stats*.th"

# `configs/*.yaml` and the models' Python code of kakaobrain/karlo.
HEAD_DIM = 64
IMAGE_SIZE, UPSAMPLED_SIZE = 64, 256
PRIOR_DIFFUSION = DiffusionSpec(schedule="cosine", prediction="x0", variance="fixed_small", clip_x0=10.0)
DECODER_DIFFUSION = DiffusionSpec(schedule="cosine", prediction="eps", variance="learned_range", clip_x0=1.0)
UPSAMPLER_DIFFUSION = DiffusionSpec(schedule="cosine", prediction="eps", variance="fixed_small", clip_x0=1.0)
UPSAMPLER_TIMESTEPS = (0, 166, 333, 500, 666, 832, 999)

_MODEL = "model."
_DIGEST = re.compile(r"[0-9a-f]{32}")
# What a prior saved with all of its buffers holds beside its weights (Kandinsky's loader passes over it).
_CONSTANTS = ("clip_mean", "clip_std", "causal_mask", "cf_token", "cf_mask")
_UPSAMPLERS = {"model_first_steps.": "first.", "model_last_step.": "last."}


# --- prior ---


def prior_config(source: WeightSource) -> DiffusionPriorConfig:
    """The shape of the prior from its weights."""
    width, dim = shape_of(source, f"{_MODEL}clip_img_proj.weight", 2)
    positions = shape_of(source, f"{_MODEL}positional_embedding", 3)[1]
    return DiffusionPriorConfig(
        dim=dim,
        text_dim=shape_of(source, f"{_MODEL}text_enc_proj.weight", 2)[1],
        width=width,
        layers=count_layers(source, f"{_MODEL}transformer.resblocks.{{n}}.attn.c_qkv.weight"),
        heads=max(1, width // HEAD_DIM),
        text_length=positions - EXTRA_TOKENS,
        mlp_ratio=shape_of(source, f"{_MODEL}transformer.resblocks.0.mlp.c_fc.weight", 2)[0] / width,
    )


def prior_rules(head_dim: int) -> list[Rule]:
    """The names of the prior's layers."""
    names = {
        "text_enc_proj": "text_in",
        "text_emb_proj": "pooled_in",
        "clip_img_proj": "image_in",
        "time_embed.{n}": "time_embed.{n}",
        "final_ln": "out_norm",
        "out_proj": "out",
        "transformer.resblocks.{n}.ln_1": "blocks.{n}.attention_norm",
        "transformer.resblocks.{n}.attn.c_proj": "blocks.{n}.attention_out",
        "transformer.resblocks.{n}.ln_2": "blocks.{n}.mlp_norm",
        "transformer.resblocks.{n}.mlp.c_fc": "blocks.{n}.mlp_in",
        "transformer.resblocks.{n}.mlp.c_proj": "blocks.{n}.mlp_out",
    }
    return [
        *(Rule(_MODEL + theirs, ours) for theirs, ours in names.items()),
        Rule(f"{_MODEL}transformer.resblocks.{{n}}.attn.c_qkv", "blocks.{n}.qkv", heads_last(3, head_dim)),
        Rule(f"{_MODEL}positional_embedding", "positions", without_batch),
        Rule(f"{_MODEL}prd_emb", "query", torch.flatten),
        *(Rule(name, None) for name in _CONSTANTS),
    ]


def load_prior(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> PriorStage:
    """The prior, with the statistics from the file beside it."""
    config = prior_config(source)
    space = _space_with_statistics(source, config.dim)
    rules = prior_rules(config.width // config.heads)
    network = load_network(lambda: DiffusionPrior(config), source, rules, device=device, dtype=dtype)
    return PriorStage(network, space, PRIOR_DIFFUSION, str(source.path))


def _space_with_statistics(source: WeightSource, dim: int) -> EmbeddingSpace:
    path = _statistics_file(source.path)
    statistics = open_weights(path)
    if list(statistics.shapes.values()) != [(dim,), (dim,)]:
        shapes = ", ".join(str(list(shape)) for shape in statistics.shapes.values())
        raise ValueError(
            f"{path}: found tensors of shape {shapes}, expected the mean and the standard deviation of CLIP "
            f"image embeddings, each [{dim}] for {source.path.name}. Get the file that belongs to it"
        )
    mean, std = (tensor for _, tensor in statistics.tensors())
    return clip_space(dim, mean=mean, std=std)


def _statistics_file(prior: Path) -> Path:
    """Beside the prior; Karlo's own script downloads each file into a folder named by its MD5 digest."""
    folder = prior.parent
    candidates = [folder / STATISTICS_FILE, *sorted(folder.glob(_STATISTICS_FILES))]
    if _DIGEST.fullmatch(folder.name):
        candidates += sorted(folder.parent.glob(f"*/{STATISTICS_FILE}"))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"{prior}: needs {STATISTICS_FILE}, the mean and standard deviation of CLIP's image embeddings, "
        f"which is published with it. Put it into {folder}"
    )


# --- decoder ---


def decoder_config(source: WeightSource) -> UNetConfig:
    """The shape of the decoder from its weights."""
    context_dim, text_dim = shape_of(source, f"{_MODEL}text_seq_proj.0.weight", 2)
    tokens, clip_dim = shape_of(source, f"{_MODEL}clip_tok_proj.weight", 2)
    conditioning = ConditioningConfig(
        clip_dim=clip_dim,
        clip_tokens=tokens // context_dim,
        text_dim=text_dim,
        text_pooled_dim=shape_of(source, f"{_MODEL}text_feat_proj.weight", 2)[1],
        context_dim=context_dim,
        null_text="empty_caption",
    )
    return original_config(
        source, _MODEL, image_size=IMAGE_SIZE, head_dim=HEAD_DIM, conditioning=conditioning
    )


def load_decoder(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> DecoderStage:
    """The decoder."""
    config = decoder_config(source)
    names = {
        "clip_emb": "clip_embedding",
        "text_seq_proj.0": "text_context",
        "text_seq_proj.1": "text_norm",
        "text_feat_proj": "text_embedding",
        "cf_param": "null_clip",
    }
    rules = original_rules(config, _MODEL)
    rules += [Rule(_MODEL + theirs, f"conditioner.{ours}") for theirs, ours in names.items()]
    tokens = token_by_token(config.conditioning.clip_tokens)
    rules.append(Rule(f"{_MODEL}clip_tok_proj", "conditioner.clip_context", tokens))
    network = load_network(lambda: UNet(config), source, rules, device=device, dtype=dtype)
    space = clip_space(config.conditioning.clip_dim)
    return DecoderStage(network, space, DECODER_DIFFUSION, str(source.path))


# --- upsampler ---


def upsampler_config(source: WeightSource) -> UNetPairConfig:
    """The shape of both networks of the upsampler from their weights."""
    return pair_config(original_config(source, next(iter(_UPSAMPLERS)), image_size=UPSAMPLED_SIZE))


def load_upsampler(
    source: WeightSource, device: torch.device | str, dtype: torch.dtype | None
) -> UpsamplerStage:
    """The upsampler: six steps by one network, the last by another."""
    config = upsampler_config(source)
    rules = [rule for parts in _UPSAMPLERS.items() for rule in original_rules(config, *parts)]
    network = load_network(lambda: UNetPair(config), source, rules, device=device, dtype=dtype)
    return UpsamplerStage(
        network,
        IMAGE_SIZE,
        UPSAMPLER_DIFFUSION,
        UPSAMPLER_TIMESTEPS,
        str(source.path),
    )


# --- what the layout of diffusers shares ---


def pair_config(config: UNetConfig) -> UNetPairConfig:
    """The config of two networks of this shape."""
    return UNetPairConfig(**{field.name: getattr(config, field.name) for field in fields(config)})


def token_by_token(tokens: int) -> Callable[[Tensor], Tensor]:
    """Rows of the projection to context tokens: Karlo's, the token its last index → token after token."""
    return partial(rearrange, pattern="(c n) ... -> (n c) ...", n=tokens)


KARLO_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="Karlo or Kandinsky 2.1 prior (original)",
        stage="prior",
        matches=has_keys(f"{_MODEL}prd_emb", f"{_MODEL}clip_img_proj.weight"),
        load=load_prior,
        config=prior_config,
        space=lambda source: space_id(prior_config(source).dim),
        licence="CreativeML OpenRAIL-M (Karlo), Apache-2.0 (Kandinsky 2.1)",
        reads=(_STATISTICS_FILES, f"../*/{STATISTICS_FILE}"),
    ),
    Layout(
        name="Karlo decoder (original)",
        stage="decoder",
        matches=has_keys(f"{_MODEL}cf_param", f"{_MODEL}clip_tok_proj.weight"),
        load=load_decoder,
        config=decoder_config,
        space=lambda source: space_id(decoder_config(source).conditioning.clip_dim),
        licence="CreativeML OpenRAIL-M",
    ),
    Layout(
        name="Karlo upsampler 64 to 256 (original)",
        stage="upsampler",
        matches=has_keys(*(f"{prefix}input_blocks.0.0.weight" for prefix in _UPSAMPLERS)),
        load=load_upsampler,
        config=upsampler_config,
        licence="CreativeML OpenRAIL-M",
    ),
)
