"""The header of unclip's own checkpoints: what a file says about itself beside its tensors.

The metadata key ``unclip`` of a safetensors file holds JSON: format version, stage, kind of network, its
config, diffusion spec and embedding space; for an upsampler also its input size and fixed timesteps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ...config import config_from_dict, config_to_dict
from ...diffusion.spec import DiffusionSpec
from ...embeddings.space import EmbeddingSpace
from ...networks.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from ...networks.clip import ClipConfig, ClipNetwork
from ...networks.dalle2_prior import Dalle2Prior, Dalle2PriorConfig
from ...networks.dalle2_unet import Dalle2UNet
from ...networks.dalle2_unet_config import Dalle2UNetConfig
from ...networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from ...networks.glide_text import GlideText, GlideTextConfig
from ...networks.movq import MoVQ, MoVQConfig
from ...networks.multilingual_clip import MultilingualClip, MultilingualClipConfig
from ...networks.one_pass_prior import OnePassPrior, OnePassPriorConfig
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...networks.unet_pair import UNetPair, UNetPairConfig
from ...stages import (
    AutoencoderStage,
    ClipStage,
    DecoderStage,
    PriorStage,
    Stage,
    StageName,
    UpsamplerConditions,
    UpsamplerStage,
    require_low_size,
)
from ..files.safetensors_io import TensorFile, read_tensor_file
from ..files.weight_source import WeightSource

FORMAT = 1
METADATA_KEY = "unclip"
CLASSIFIER = "classifier"
"""What the header of a classifier has as its stage, which is none."""
AUTOENCODER = "autoencoder."
"""What the names of a decoder's autoencoder begin with."""
TOKENIZER = "tokenizer"
"""The vocabulary of a text encoder that brings its own: bytes of a ``tokenizer.json``, of GLIDE's of a
``vocab.bpe``."""

_STAGE_CLASSES: dict[str, type] = {
    "clip": ClipStage,
    "prior": PriorStage,
    "decoder": DecoderStage,
    "upsampler": UpsamplerStage,
    "autoencoder": AutoencoderStage,
}


@dataclass(frozen=True)
class NetworkKind:
    """A network that native files may hold: how it is built, for which stages, and whether it denoises."""

    build: Callable[[Any], nn.Module]
    config: type
    stages: tuple[StageName, ...]
    denoises: bool = True


NETWORKS: dict[str, NetworkKind] = {
    "clip": NetworkKind(ClipNetwork, ClipConfig, ("clip",), denoises=False),
    "multilingual_clip": NetworkKind(MultilingualClip, MultilingualClipConfig, ("clip",), denoises=False),
    "glide_text": NetworkKind(GlideText, GlideTextConfig, ("clip",), denoises=False),
    "diffusion_prior": NetworkKind(DiffusionPrior, DiffusionPriorConfig, ("prior",)),
    "one_pass_prior": NetworkKind(OnePassPrior, OnePassPriorConfig, ("prior",)),
    "dalle2_prior": NetworkKind(Dalle2Prior, Dalle2PriorConfig, ("prior",)),
    "ar_prior": NetworkKind(AutoregressivePrior, AutoregressivePriorConfig, ("prior",), denoises=False),
    "unet": NetworkKind(UNet, UNetConfig, ("decoder", "upsampler")),
    "dalle2_unet": NetworkKind(Dalle2UNet, Dalle2UNetConfig, ("decoder", "upsampler")),
    "movq": NetworkKind(MoVQ, MoVQConfig, ("autoencoder",), denoises=False),
    "unet_pair": NetworkKind(UNetPair, UNetPairConfig, ("upsampler",)),
}


@dataclass(frozen=True)
class NativeHeader:
    """What a checkpoint says about itself, without its tensors.

    Attributes:
        stage: which stage it is.
        network: kind of network, a key of ``NETWORKS``.
        config: of the network.
        diffusion: None for a CLIP model and an autoregressive prior.
        space: None for an upsampler that reads no captions.
        low_size, timesteps, recipe: of an upsampler, see ``UpsamplerStage``.
        autoencoder: config of a decoder's autoencoder, whose tensors stand behind AUTOENCODER.
        file: its tensors by name.
    """

    stage: StageName
    network: str
    config: Any
    diffusion: DiffusionSpec | None
    space: EmbeddingSpace | None
    low_size: int | None
    timesteps: tuple[int, ...] | None
    recipe: UpsamplerConditions
    autoencoder: MoVQConfig | None
    file: TensorFile


def is_native(file: TensorFile | WeightSource) -> bool:
    """Whether a file is in this format, of whatever version."""
    return METADATA_KEY in file.metadata


def read_header(path: str | Path) -> NativeHeader:
    """Read what a checkpoint is, without its tensors.

    Raises:
        ValueError: no file, not safetensors, not unclip's, a newer version, or a config that does not parse.
    """
    file = read_tensor_file(path)
    where = str(file.path)
    if not is_native(file):
        raise ValueError(
            f"{where}: is a safetensors file, but not one of unclip's (its metadata lacks {METADATA_KEY!r}); "
            f"choose a checkpoint that unclip saved"
        )
    data = read_metadata(file, METADATA_KEY)
    stage, network = data.get("stage"), data.get("network")
    if stage == CLASSIFIER:
        raise ValueError(
            f"{where}: is a classifier, which judges pictures for unclip eval (--classifier), and no stage "
            f"of unCLIP; choose another file"
        )
    kind = NETWORKS.get(network) if isinstance(network, str) else None
    if kind is None or stage not in kind.stages:
        raise ValueError(
            f"{where}: holds the stage {stage!r} as a network {network!r}, which this version does not know; "
            f"update unclip"
        )
    try:
        config = config_from_dict(kind.config, data.get("config"), "config")
        diffusion = _optional(DiffusionSpec, data, "diffusion", needed=kind.denoises)
        space = _optional(EmbeddingSpace, data, "space", needed=stage not in ("upsampler", "autoencoder"))
        low_size = data.get("low_size")
        if stage == "upsampler" and not (isinstance(low_size, int) and low_size > 0):
            raise ValueError(f"low_size: found {low_size!r}, expected the input size in pixels")
        recipe = _optional(UpsamplerConditions, data, "recipe", needed=False) or UpsamplerConditions()
        autoencoder = _optional(MoVQConfig, data, "autoencoder", needed=False)
        timesteps = data.get("timesteps")
        whole = isinstance(timesteps, list) and all(isinstance(t, int) for t in timesteps)
        if timesteps is not None and not whole:
            raise ValueError(f"timesteps: found {timesteps!r}, expected a list of whole numbers")
        if stage == "upsampler":
            require_low_size(low_size, config.image_size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return NativeHeader(
        stage=stage,
        network=network,
        config=config,
        diffusion=diffusion,
        space=space,
        low_size=low_size,
        timesteps=None if timesteps is None else tuple(timesteps),
        recipe=recipe,
        autoencoder=autoencoder,
        file=file,
    )


def describe(stage: Stage) -> dict[str, Any]:
    """The header of a stage, as JSON values.

    Raises:
        ValueError: a network of a kind that has no name in this format.
    """
    name = next(name for name, cls in _STAGE_CLASSES.items() if isinstance(stage, cls))
    config = stage.network.config
    network = next((key for key, kind in NETWORKS.items() if type(config) is kind.config), None)
    if network is None or name not in NETWORKS[network].stages:
        raise ValueError(f"a {name} with a {type(stage.network).__name__} cannot be saved in unclip's format")
    description: dict[str, Any] = {
        "format": FORMAT,
        "stage": name,
        "network": network,
        "config": config_to_dict(config),
        "diffusion": _diffusion(getattr(stage, "diffusion", None)),
        "space": _dict_or_none(getattr(stage, "space", None)),
    }
    if isinstance(stage, DecoderStage) and stage.autoencoder is not None:
        description["autoencoder"] = config_to_dict(stage.autoencoder.network.config)
    if isinstance(stage, UpsamplerStage):
        description["low_size"] = stage.low_size
        description["timesteps"] = stage.timesteps
        if stage.recipe != UpsamplerConditions():
            description["recipe"] = config_to_dict(stage.recipe)
    return description


def read_metadata(file: TensorFile, key: str) -> Mapping[str, Any]:
    """What a metadata key of a file in this format says, parsed.

    Raises:
        ValueError: not JSON, or another version of the format; names the file.
    """
    try:
        data = json.loads(file.metadata[key])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.path}: its metadata is not JSON ({error}); get the file again") from error
    require_version(data, str(file.path))
    return data


def require_version(data: Any, where: str) -> None:
    """Raise a ValueError unless parsed JSON is of the version of the format that is read here."""
    found = data.get("format") if isinstance(data, Mapping) else None
    if found == FORMAT:
        return
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(
            f"{where}: is in version {found} of the format, this unclip reads version {FORMAT}; update unclip"
        )
    raise ValueError(
        f"{where}: its format is {found!r}, expected {FORMAT}; the file is damaged or not unclip's"
    )


Described = TypeVar("Described")


def _optional(cls: type[Described], data: Mapping[str, Any], key: str, *, needed: bool) -> Described | None:
    if data.get(key) is None:
        if needed:
            raise ValueError(f"{key} is missing, which a {data['stage']} needs")
        return None
    return config_from_dict(cls, data[key], key)


def _diffusion(spec: DiffusionSpec | None) -> dict[str, Any] | None:
    """Without ``few_steps`` where there are none, which files of before do not name and versions not know."""
    described = _dict_or_none(spec)
    if described is not None and not described["few_steps"]:
        del described["few_steps"]
    return described


def _dict_or_none(config: Any) -> dict[str, Any] | None:
    return None if config is None else config_to_dict(config)
