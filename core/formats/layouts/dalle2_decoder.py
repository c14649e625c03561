"""Decoders and upsamplers that DALLE2-pytorch trained (laion/DALLE2-PyTorch, Veldrovive/upsamplers).

A ``Decoder`` holds U-Nets as ``unets.0`` (from image embeddings) and ``unets.1`` … (from a small picture
each). What shapes do not tell stands in the file's config, or in ``decoder_config.json`` beside it. The
package computed attention otherwise before its version 1.4, which files tell by their version alone: in later
versions LAION's decoders, which are of 1.1.0, give noise.
"""

from __future__ import annotations

import logging

import torch

from ...diffusion.spec import DiffusionSpec
from ...networks.dalle2_unet import Dalle2UNet
from ...stages import DecoderStage, UpsamplerConditions, UpsamplerStage, require_low_size
from ..files.weight_source import WeightSource
from ..mapping.keymap import load_network, shape_of
from ..mapping.spaces import clip_space, space_id
from .dalle2_averaged import averaged
from .dalle2_settings import DECODER, UNET
from .dalle2_unets import UNetFile, dalle2_unet_rules, image_size, unet_config
from .diffusers_files import read_number
from .layout import Layout

LICENCE = "MIT"
_NOISE = 0.2  # of Imagen, which upstream takes where nothing is said

_log = logging.getLogger(__name__)


def _network(
    source: WeightSource, number: int, device: torch.device | str, dtype: torch.dtype | None
) -> tuple[UNetFile, Dalle2UNet, DiffusionSpec]:
    source = averaged(source)
    file = UNetFile(source, number)
    DECODER.require(file.where, file.decoder)
    UNET.require(file.where, file.unet)
    config = unet_config(file)
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        raise ValueError(
            f"{source.path}: U-Net {number + 1} takes {config.in_channels} channels of x_t and gives "
            f"{config.out_channels}, expected 3 and 3 or 6: only networks of pictures, without "
            f"self-conditioning, are read"
        )
    spec = _diffusion(file, learned=config.out_channels == 6)
    rules = dalle2_unet_rules(config, file)
    network = load_network(lambda: Dalle2UNet(config), source, rules, device=device, dtype=dtype)
    return file, network, spec


def _diffusion(file: UNetFile, learned: bool) -> DiffusionSpec:
    last = file.count > 1 and file.number == file.count - 1
    schedule = file.of_unet("beta_schedule", "linear" if last else "cosine")
    if schedule not in ("cosine", "linear"):
        raise ValueError(
            f"{file.where}: beta_schedule is {schedule!r}, expected cosine or linear. U-Net "
            f"{file.number + 1} was trained with a noise schedule that unclip does not have"
        )
    x0, v = (file.of_unet(name, False) is True for name in ("predict_x_start", "predict_v"))
    return DiffusionSpec(
        schedule,
        read_number(file.decoder, "timesteps", 1000, file.where),
        "v" if v else "x0" if x0 else "eps",
        "learned_range" if learned else "fixed_small",
        clip_x0=1.0,
    )


def load_dalle2_decoder(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> DecoderStage:
    """Load the U-Net that paints image embeddings: unit vectors of the CLIP space.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape, or a setting that is not known.
    """
    _, network, spec = _network(source, 0, device, dtype)
    given = network.config.conditioning
    assert given is not None and given.clip_dim is not None, "without tokens of z_i it is not recognised"
    return DecoderStage(network, clip_space(given.clip_dim, "unit"), spec, str(source.path))


def load_dalle2_upsampler(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> UpsamplerStage:
    """Load the first U-Net that makes a small picture larger.

    Raises:
        ValueError: see :func:`load_dalle2_decoder`.
    """
    number = _upsamplers(source)[0]
    file, network, spec = _network(source, number, device, dtype)
    more = _upsamplers(source)[1:]
    if more:
        _log.warning("%s: holds %d upsamplers; the first one is read", source.path, 1 + len(more))
    low_size = image_size(UNetFile(source, number - 1))
    require_low_size(low_size, network.config.image_size)
    given = network.config.conditioning
    space = None if given is None or given.text_dim is None else clip_space(given.text_dim, "unit")
    noisy = network.config.noise_level
    level = float(file.decoder.get("lowres_noise_sample_level", _NOISE)) if noisy else 0.0
    recipe = UpsamplerConditions("nearest", noise_level=level, noise_on="large")
    return UpsamplerStage(network, low_size, spec, None, str(source.path), space, recipe)


def _numbers(source: WeightSource) -> list[int]:
    """The U-Nets that a file holds whole; of those that were not trained it may have a placeholder."""
    found = (name.split(".") for name in source.shapes if name.endswith(".to_time_hiddens.1.weight"))
    return sorted(int(parts[1]) for parts in found if parts[0] == "unets" and parts[1].isdigit())


def _upsamplers(source: WeightSource) -> list[int]:
    return [number for number in _numbers(source) if number > 0]


def _paints(source: WeightSource) -> bool:
    return 0 in _numbers(source) and "unets.0.image_to_tokens.0.weight" in source.shapes


def _upsamples(source: WeightSource) -> bool:
    return bool(_upsamplers(source))


DALLE2_DECODER_LAYOUTS = (
    Layout(
        "DALLE2-pytorch decoder (LAION)",
        "decoder",
        _paints,
        load_dalle2_decoder,
        lambda source: unet_config(UNetFile(source, 0), tell=False),
        lambda source: space_id(shape_of(source, "unets.0.image_to_tokens.0.weight", 2)[1]),
        LICENCE,
    ),
    Layout(
        "DALLE2-pytorch upsampler (LAION, Veldrovive)",
        "upsampler",
        _upsamples,
        load_dalle2_upsampler,
        lambda source: unet_config(UNetFile(source, _upsamplers(source)[0]), tell=False),
        None,
        LICENCE,
    ),
)
