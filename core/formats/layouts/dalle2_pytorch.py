"""Priors that DALLE2-pytorch trained (laion/DALLE2-PyTorch, ``prior/best.pth``).

The weights lie under ``net.``; what else a ``DiffusionPrior`` of it holds is a frozen CLIP model and the
tables of the noise schedule. What shapes do not tell stands in ``prior_config.json`` beside the file, or in
the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...diffusion.spec import DiffusionSpec
from ...networks.dalle2_prior import Dalle2Prior, Dalle2PriorConfig
from ...stages import PriorStage
from ..files.json_files import read_json
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, count_layers, load_network, shape_of
from ..mapping.spaces import clip_space, space_id
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

# Options of `prior_config.json` that only have the values of LAION's prior here, which are the defaults.
_FIXED = {"predict_x_start": True, "predict_v": False, "condition_on_text_encodings": True}
_FIXED_NET = {"self_cond": False, "norm_out": True, "final_proj": True}


def dalle2_prior_config(source: WeightSource) -> Dalle2PriorConfig:
    """The shape of the prior from its weights."""
    mlp_out = shape_of(source, f"{_TRANSFORMER}layers.0.1.5.weight", 2)
    return Dalle2PriorConfig(
        dim=shape_of(source, f"{_NET}learned_query", 1)[0],
        layers=count_layers(source, f"{_TRANSFORMER}layers.{{n}}"),
        heads=shape_of(source, f"{_TRANSFORMER}rel_pos_bias.relative_attention_bias.weight", 2)[1],
        head_dim=shape_of(source, f"{_TRANSFORMER}layers.0.0.null_kv", 2)[1],
        text_length=shape_of(source, f"{_NET}null_text_encodings", 3)[1],
        mlp_ratio=mlp_out[1] / mlp_out[0],
        timesteps=shape_of(source, f"{_NET}to_time_embeds.0.weight", 2)[0],
        norm_in=f"{_TRANSFORMER}init_norm.g" in source.shapes,
        normformer=f"{_TRANSFORMER}layers.0.1.3.g" in source.shapes,
        rotary=f"{_TRANSFORMER}layers.0.0.{_FREQUENCIES}" in source.shapes,
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
        Rule(f"{_NET}null_text_encodings", "null_tokens", _without_batch),
        Rule(f"{_NET}null_text_embeds", "null_pooled", _flat),
        Rule(f"{_NET}null_image_embed", "null_image", _flat),
    ]
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
    config = dalle2_prior_config(source)
    spec = _diffusion(source, config.timesteps)
    network = load_network(
        lambda: Dalle2Prior(config), source, dalle2_prior_rules(config), device=device, dtype=dtype
    )
    return PriorStage(network, clip_space(config.dim, "unit"), spec, str(source.path))


def _diffusion(source: WeightSource, timesteps: int) -> DiffusionSpec:
    """The diffusion process, from the config in the file, beside it, or as LAION trained."""
    config, where = source.metadata.get("config"), str(source.path)
    beside = source.path.with_name(CONFIG_FILE)
    if not isinstance(config, Mapping) and beside.is_file():
        config, where = read_json(beside), str(beside)
    options = _table(_table(config), "prior")
    for table, fixed in ((options, _FIXED), (_table(options, "net"), _FIXED_NET)):
        for name, expected in fixed.items():
            found = table.get(name, expected)
            if found != expected:
                raise ValueError(
                    f"{where}: {name} is {found!r}, expected {expected!r} as in LAION's prior. It is a prior "
                    f"of another kind, which cannot be loaded"
                )
    schedule = options.get("beta_schedule", "cosine")
    if schedule not in ("cosine", "linear"):
        raise ValueError(
            f"{where}: beta_schedule is {schedule!r}, expected cosine or linear. The prior was trained with "
            f"a noise schedule that unclip does not have"
        )
    return DiffusionSpec(schedule, timesteps, "x0", "fixed_small", clip_x0=None)


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


DALLE2_PRIOR_LAYOUT = Layout(
    "DALLE2-pytorch prior (LAION)",
    "prior",
    has_keys(
        f"{_NET}learned_query",
        f"{_NET}null_text_encodings",
        f"{_TRANSFORMER}rel_pos_bias.relative_attention_bias.weight",
    ),
    load_dalle2_prior,
    dalle2_prior_config,
    lambda source: space_id(shape_of(source, f"{_NET}learned_query", 1)[0]),
    LICENCE,
)
