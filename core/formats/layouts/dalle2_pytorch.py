"""Priors that DALLE2-pytorch trained (laion/DALLE2-PyTorch, ``prior/best.pth``).

The weights lie under ``net.``; what else a ``DiffusionPrior`` of it holds is a frozen CLIP model and the
tables of the noise schedule. What shapes do not tell stands in ``prior_config.json`` beside the file, or in
the file. The package computed three networks under nearly the same names: LAION's published prior is of an
early version.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...diffusion.spec import DiffusionSpec
from ...networks.dalle2_prior import Dalle2Prior, Dalle2PriorConfig
from ...stages import PriorStage
from ..files.json_files import read_json
from ..files.torch_pickle import release_of
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, count_layers, load_network, shape_of
from ..mapping.spaces import clip_space, space_id
from .dalle2_averaged import averaged
from .dalle2_settings import ADAPTER, NETWORK, PRIOR, read_scale
from .diffusers_files import read_number
from .layout import Layout, has_keys

LICENCE = "MIT"
CONFIG_FILE = "prior_config.json"

_NET = "net."
_TRANSFORMER = "net.causal_transformer."
_ATTENTION = f"{_TRANSFORMER}layers.{{n}}.0."
_MLP = f"{_TRANSFORMER}layers.{{n}}.1."
_FREQUENCIES = "rotary_emb.freqs"

# What a whole `DiffusionPrior` holds besides: the CLIP model that it was trained on, tables of its schedule.
_NOT_THE_NETWORK = ("clip", "noise_scheduler")

_log = logging.getLogger(__name__)

_NULL_NOW, _NULL_BEFORE = f"{_NET}null_text_encodings", f"{_NET}null_text_embed"
# Releases of the package that changed the network and no name in its files.
_OLDEST, _COSINE, _UNCONDITIONAL, _WITHOUT_TEXT = (0, 23, 3), (1, 4, 3), (1, 9, 0), (1, 10, 4)
_ASSUMED = (1, 1, 0)


def dalle2_prior_config(source: WeightSource) -> Dalle2PriorConfig:
    """The shape of the prior from its weights, and what its version computed."""
    return _config(source, tell=False)


def _config(source: WeightSource, tell: bool = True) -> Dalle2PriorConfig:
    mlp_out = shape_of(source, f"{_TRANSFORMER}layers.0.1.5.weight", 2)
    before = _NULL_BEFORE in source.shapes
    return Dalle2PriorConfig(
        dim=shape_of(source, f"{_NET}learned_query", 1)[0],
        layers=count_layers(source, f"{_TRANSFORMER}layers.{{n}}"),
        heads=shape_of(source, f"{_TRANSFORMER}rel_pos_bias.relative_attention_bias.weight", 2)[1],
        head_dim=shape_of(source, f"{_TRANSFORMER}layers.0.0.null_kv", 2)[1],
        text_length=shape_of(source, _NULL_BEFORE if before else _NULL_NOW, 3)[1],
        mlp_ratio=mlp_out[1] / mlp_out[0],
        timesteps=shape_of(source, f"{_NET}to_time_embeds.0.weight", 2)[0],
        norm_in=f"{_TRANSFORMER}init_norm.g" in source.shapes,
        normformer=f"{_TRANSFORMER}layers.0.1.3.g" in source.shapes,
        rotary=f"{_TRANSFORMER}layers.0.0.{_FREQUENCIES}" in source.shapes,
        cosine=not before or _version(source, tell) >= _COSINE,
        unconditional=not before,
    )


def _version(source: WeightSource, tell: bool) -> tuple[int, ...]:
    """Of which release of the package an old prior is: its weights have the names of several.

    Raises:
        ValueError: a release whose network is not computed here.
    """
    version, where = _told_version(source)
    if version is None:
        if tell:
            _log.warning(
                "%s: was made by a version of DALLE2-pytorch before 1.9.0, and does not say by which; it is "
                'read as of %s. If its embeddings are wrong, put {"version": "1.8.4"} (the version that '
                "trained it; from 1.4.3 on attention is another) into %s beside it",
                source.path,
                ".".join(map(str, _ASSUMED)),
                CONFIG_FILE,
            )
        return _ASSUMED
    if version < _OLDEST:
        raise ValueError(
            f"{where}: was made by DALLE2-pytorch {'.'.join(map(str, version))}, whose network is not read; "
            f"expected {'.'.join(map(str, _OLDEST))} or later. Choose a later checkpoint"
        )
    return version


def _told_version(source: WeightSource) -> tuple[tuple[int, ...] | None, Path]:
    """The release that trained a prior, from the file or the config, and which of them is read."""
    _, described, where = _described(source)
    return release_of(source.metadata.get("version")) or release_of(described.get("version")), where


def _require_known_guidance(source: WeightSource) -> None:
    """Raise a ValueError for the few releases whose unconditional branch dropped all but z_t."""
    version, where = _told_version(source)
    if version is not None and _UNCONDITIONAL <= version < _WITHOUT_TEXT and _NULL_NOW in source.shapes:
        raise ValueError(
            f"{where}: was made by DALLE2-pytorch {'.'.join(map(str, version))}, whose unconditional "
            f"branch is another than that of every later version and is not computed here. Choose a later "
            f"checkpoint"
        )


def dalle2_prior_rules(config: Dalle2PriorConfig) -> list[Rule]:
    """The names of the prior's layers."""
    names = {
        f"{_NET}to_time_embeds.0": "time_embed",
        f"{_NET}learned_query": "query",
        f"{_TRANSFORMER}rel_pos_bias.relative_attention_bias": "bias.table",
        f"{_TRANSFORMER}norm.g": "norm_out.gain",
        f"{_TRANSFORMER}project_out": "out",
        f"{_ATTENTION}norm.g": "blocks.{n}.attention_norm.gain",
        f"{_ATTENTION}to_q": "blocks.{n}.q",
        f"{_ATTENTION}to_kv": "blocks.{n}.kv",
        f"{_ATTENTION}null_kv": "blocks.{n}.null_kv",
        f"{_ATTENTION}to_out.0": "blocks.{n}.attention_out",
        f"{_ATTENTION}to_out.1.g": "blocks.{n}.attention_out_norm.gain",
        f"{_MLP}0.g": "blocks.{n}.mlp_norm.gain",
        f"{_MLP}1": "blocks.{n}.mlp_in",
        f"{_MLP}5": "blocks.{n}.mlp_out",
    }
    rules = [Rule(source, target) for source, target in names.items()]
    rules += [
        *(Rule(name, None) for name in _NOT_THE_NETWORK),
        Rule(_NULL_NOW if config.unconditional else _NULL_BEFORE, "null_tokens", _without_batch),
    ]
    if config.unconditional:
        rules.append(Rule(f"{_NET}null_text_embeds", "null_pooled", _flat))
        rules.append(Rule(f"{_NET}null_image_embed", "null_image", _flat))
    if config.norm_in:
        rules.append(Rule(f"{_TRANSFORMER}init_norm.g", "norm_in.gain"))
    if config.normformer:
        rules.append(Rule(f"{_MLP}3.g", "blocks.{n}.hidden_norm.gain"))
    if config.rotary:  # one module of all layers, which a state dict therefore repeats
        layers = (f"{_TRANSFORMER}layers.{n}.0.{_FREQUENCIES}" for n in range(config.layers))
        rules.append(Rule(tuple(layers), "positions.frequencies", _first))
    return rules


def load_dalle2_prior(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PriorStage:
    """Load the prior. Its embeddings are unit vectors, and it has no statistics.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape, or an option that is not LAION's.
    """
    _require_known_guidance(source)
    config = _config(source)
    spec = _diffusion(source, config)
    network = load_network(
        lambda: Dalle2Prior(config), averaged(source), dalle2_prior_rules(config), device=device, dtype=dtype
    )
    return PriorStage(network, clip_space(config.dim, "unit"), spec, str(source.path))


def _described(source: WeightSource) -> tuple[Mapping[str, Any], Mapping[str, Any], Path]:
    """The table ``prior`` of the config, the whole config, and where it is: in the file or beside it."""
    config, where = source.metadata.get("config"), source.path
    beside = source.path.with_name(CONFIG_FILE)
    if not isinstance(config, Mapping) and beside.is_file():
        config, where = read_json(beside), beside
    return _table(_table(config), "prior"), _table(config), where


def _diffusion(source: WeightSource, config: Dalle2PriorConfig) -> DiffusionSpec:
    """The diffusion process, from the config in the file, beside it, or as LAION trained."""
    options, _, where = _described(source)
    PRIOR.require(where, options)
    NETWORK.require(where, _table(options, "net"))
    ADAPTER.require(where, _table(options, "clip"))
    scale = read_scale(where, options)
    schedule = options.get("beta_schedule", "cosine")
    if schedule not in ("cosine", "linear"):
        raise ValueError(
            f"{where}: beta_schedule is {schedule!r}, expected cosine or linear. The prior was trained with "
            f"a noise schedule that unclip does not have"
        )
    if options.get("cond_drop_prob") == 0:
        _log.warning("%s: cond_drop_prob is 0: it was trained without guidance; use the scale 1", where)
    # Of a table of embeddings no other than its timesteps can have been trained, whatever a config says.
    timesteps = min(config.timesteps, read_number(options, "timesteps", config.timesteps, where))
    clamped = options.get("sampling_clamp_l2norm") is True
    norm = (scale or math.sqrt(config.dim)) if clamped else None
    return DiffusionSpec(
        schedule, timesteps, "x0", "fixed_small", clip_x0=None, norm_x0=norm, embedding_scale=scale
    )


def _table(value: Any, name: str | None = None) -> Mapping[str, Any]:
    """A table of a JSON file, or one inside it; empty where there is none."""
    table = value if isinstance(value, Mapping) else {}
    return table if name is None else _table(table.get(name))


def _without_batch(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _first(*same: Tensor) -> Tensor:
    return same[0]


def _matches(source: WeightSource) -> bool:
    network = has_keys(f"{_NET}learned_query", f"{_TRANSFORMER}rel_pos_bias.relative_attention_bias.weight")
    return network(source) and (_NULL_NOW in source.shapes or _NULL_BEFORE in source.shapes)


DALLE2_PRIOR_LAYOUT = Layout(
    "DALLE2-pytorch prior (LAION)",
    "prior",
    _matches,
    load_dalle2_prior,
    dalle2_prior_config,
    lambda source: space_id(shape_of(source, f"{_NET}learned_query", 1)[0]),
    LICENCE,
)
