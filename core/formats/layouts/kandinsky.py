"""Kandinsky's decoders with their autoencoder: diffusers' folders of 2.1 and 2.2, and 2.1's own files.

A decoder paints latents, so its autoencoder is loaded with it: from the folder ``movq`` beside diffusers'
folder ``unet``, or from the file beside the original's decoder. 2.2 exists in diffusers' layout only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

from ...diffusion.spec import DiffusionSpec
from ...networks.movq import MoVQ, MoVQConfig
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...stages import AutoencoderStage, DecoderStage
from ..files.source import open_weights
from ..files.weight_source import WeightSource
from ..mapping.kandinsky_rules import (
    diffusers_conditioner_rules,
    diffusers_conditioning,
    original_conditioner_rules,
    original_conditioning,
)
from ..mapping.keymap import Rule, load_network
from ..mapping.movq_rules import (
    diffusers_movq_config,
    diffusers_movq_rules,
    original_movq_config,
    original_movq_rules,
)
from ..mapping.spaces import clip_space, space_id
from ..mapping.unet_rules import diffusers_config, diffusers_rules, original_config, original_rules
from .diffusers_files import (
    SCHEDULERS,
    neighbours,
    open_component,
    read_config,
    read_number,
    read_scheduler,
    scheduler_folder,
)
from .diffusers_settings import KANDINSKY_SETTINGS, MOVQ_SETTINGS
from .layout import Layout, has_keys, load_layout

LICENCE = "Apache-2.0"
LATENT_CHANNELS, LATENT_SIZE, HEAD_DIM = 4, 64, 64

_BETAS = {"schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
DIFFUSION_22 = DiffusionSpec(**_BETAS, variance="fixed_small", clip_x0=1.0, spacing="leading")
"""Of the published scheduler: the variance that the network gives is not used."""
DIFFUSION_21 = DiffusionSpec(**_BETAS, variance="learned_range", clip_x0=2.0)
"""``CONFIG_2_1`` and ``p_sampler`` of ai-forever/Kandinsky-2."""

_SAMPLES = ("add_embedding.image_proj.weight", "encoder_hid_proj.image_embeds.weight", "conv_in.weight")
_ORIGINAL = ("clip_to_seq.weight", "to_model_dim_n.weight", "input_blocks.0.0.weight")
_MOVQ_FILES = "*[mM][oO][vV][qQ]*"
_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")


# --- diffusers ---


def decoder_config(source: WeightSource) -> UNetConfig:
    """The shape of a decoder from its weights and its config.json."""
    folder = source.path.parent
    config = read_config(folder, KANDINSKY_SETTINGS)
    return diffusers_config(
        source,
        "",
        image_size=read_number(config, "sample_size", LATENT_SIZE, folder),
        head_dim=read_number(config, "attention_head_dim", HEAD_DIM, folder),
        conditioning=diffusers_conditioning(source),
        in_channels=LATENT_CHANNELS,
    )


def load_decoder(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> DecoderStage:
    """The decoder, with the autoencoder and the scheduler from the folders beside its own."""
    config = decoder_config(source)
    rules = diffusers_rules(config) + diffusers_conditioner_rules(config.conditioning)
    root = source.path.parent.parent
    movq = root / "movq"
    if not movq.is_dir():
        raise ValueError(
            f"{source.path}: is the U-Net of a Kandinsky decoder, which paints latents; it needs the folders "
            f"movq and scheduler of the same download beside its own. Put them into {root}"
        )
    default = DIFFUSION_21 if config.conditioning.text_dim is not None else DIFFUSION_22
    diffusion = read_scheduler(scheduler_folder(root, "decoder"), default)
    autoencoder = load_layout(MOVQ_DIFFUSERS, open_component(movq, dtype), device, dtype)
    return _decoder(source, config, rules, diffusion, autoencoder, device, dtype)


def movq_config(source: WeightSource) -> MoVQConfig:
    """The shape of the autoencoder from its weights; its config.json has to agree."""
    read_config(source.path.parent, MOVQ_SETTINGS if (source.path.parent / "config.json").is_file() else None)
    return diffusers_movq_config(source)


def load_movq(
    source: WeightSource, device: torch.device | str, dtype: torch.dtype | None
) -> AutoencoderStage:
    """The autoencoder alone."""
    config = movq_config(source)
    return _autoencoder(source, config, diffusers_movq_rules(config), device, dtype)


# --- the original of 2.1 ---


def original_decoder_config(source: WeightSource) -> UNetConfig:
    """The shape of 2.1's decoder from its weights."""
    return original_config(
        source,
        "",
        image_size=LATENT_SIZE,
        head_dim=HEAD_DIM,
        conditioning=original_conditioning(source),
        in_channels=LATENT_CHANNELS,
    )


def load_original_decoder(
    source: WeightSource, device: torch.device | str, dtype: torch.dtype | None
) -> DecoderStage:
    """2.1's decoder, with the autoencoder from the file beside it."""
    config = original_decoder_config(source)
    rules = original_rules(config) + original_conditioner_rules()
    autoencoder = load_layout(MOVQ_ORIGINAL, _movq_beside(source.path), device, dtype)
    return _decoder(source, config, rules, DIFFUSION_21, autoencoder, device, dtype)


def load_original_movq(
    source: WeightSource, device: torch.device | str, dtype: torch.dtype | None
) -> AutoencoderStage:
    """The autoencoder alone."""
    config = original_movq_config(source)
    return _autoencoder(source, config, original_movq_rules(config), device, dtype)


def _movq_beside(decoder: Path) -> WeightSource:
    """The autoencoder in the folder of a file."""
    for source in _movqs_beside(decoder):
        return source
    raise ValueError(
        f"{decoder}: is a Kandinsky decoder, which paints latents; it needs movq_final.ckpt, which is "
        f"published with it. Put it into {decoder.parent}"
    )


def _movqs_beside(decoder: Path) -> Iterator[WeightSource]:
    """Those in the folder of a file: opened for their names, and told by their keys."""
    for file in sorted(decoder.parent.glob(_MOVQ_FILES)):
        if not file.is_file() or file.suffix not in _CHECKPOINTS:
            continue
        source = open_weights(file)
        if MOVQ_ORIGINAL.matches(source):
            yield source


# --- what both share ---


def _decoder(
    source: WeightSource,
    config: UNetConfig,
    rules: list[Rule],
    diffusion: DiffusionSpec,
    autoencoder: AutoencoderStage,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> DecoderStage:
    if autoencoder.network.config.latent_channels != config.in_channels:
        raise ValueError(
            f"{autoencoder.source}: makes latents of {autoencoder.network.config.latent_channels} channels, "
            f"but {source.path} paints {config.in_channels}. They belong to different models: download both "
            f"again"
        )
    network = load_network(lambda: UNet(config), source, rules, device=device, dtype=dtype)
    space = clip_space(config.conditioning.clip_dim)
    return DecoderStage(network, space, diffusion, str(source.path), autoencoder)


def _autoencoder(
    source: WeightSource,
    config: MoVQConfig,
    rules: list[Rule],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> AutoencoderStage:
    network = load_network(lambda: MoVQ(config), source, rules, device=device, dtype=dtype)
    return AutoencoderStage(network, str(source.path))


def _clip_space_of(config: Callable[[WeightSource], UNetConfig]) -> Callable[[WeightSource], str]:
    return lambda source: space_id(config(source).conditioning.clip_dim)


MOVQ_DIFFUSERS = Layout(
    name="MoVQ of Kandinsky (diffusers)",
    stage="autoencoder",
    matches=has_keys("decoder.conv_norm_out.conv_y.weight", "encoder.conv_norm_out.weight"),
    load=load_movq,
    config=movq_config,
    licence=LICENCE,
)
MOVQ_ORIGINAL = Layout(
    name="MoVQ of Kandinsky 2.1 (original)",
    stage="autoencoder",
    matches=has_keys("decoder.norm_out.conv_y.weight", "encoder.norm_out.weight"),
    load=load_original_movq,
    config=original_movq_config,
    licence=LICENCE,
)
KANDINSKY_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="Kandinsky decoder (diffusers)",
        stage="decoder",
        matches=has_keys(*_SAMPLES),
        load=load_decoder,
        config=decoder_config,
        space=_clip_space_of(decoder_config),
        licence=LICENCE,
        beside=lambda source: neighbours(source, "movq"),
        reads=(SCHEDULERS, "../movq/*"),
    ),
    Layout(
        name="Kandinsky 2.1 decoder (original)",
        stage="decoder",
        matches=has_keys(*_ORIGINAL),
        load=load_original_decoder,
        config=original_decoder_config,
        space=_clip_space_of(original_decoder_config),
        licence=LICENCE,
        beside=lambda source: list(islice(_movqs_beside(source.path), 1)),
        reads=(_MOVQ_FILES,),
    ),
    MOVQ_DIFFUSERS,
    MOVQ_ORIGINAL,
)
