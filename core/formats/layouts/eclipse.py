"""ECLIPSE's priors and λ-ECLIPSE's (ECLIPSE-Community): diffusers' layout, but no diffusion."""

from __future__ import annotations

import torch

from ...diffusion.spec import DiffusionSpec
from ...networks.one_pass_prior import ONE_PASS_EXTRA_TOKENS, OnePassPrior, OnePassPriorConfig
from ...stages import PriorStage
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, load_network
from ..mapping.prior_rules import transformer_rules
from ..mapping.spaces import clip_space, space_id
from .diffusers import HEADS_OPTION, transformer_shape
from .diffusers_files import read_config, read_number
from .diffusers_settings import PRIOR_SETTINGS
from .layout import Layout, has_keys

_CONTROL = "embedding_control"  # λ-ECLIPSE's, beside the layers of ECLIPSE's own

# One step from pure noise to x0, which is not clamped.
ONE_STEP = DiffusionSpec(num_timesteps=1, prediction="x0", clip_x0=None)


def prior_config(source: WeightSource) -> OnePassPriorConfig:
    """The shape of the prior from its weights and its config.json.

    Raises:
        ValueError: there is no config.json, which alone tells the number of heads.
    """
    folder = source.path.parent
    described = read_config(folder, PRIOR_SETTINGS)
    if HEADS_OPTION not in described:
        raise ValueError(
            f"{source.path}: needs the config.json that is published with it, which tells the number of "
            f"attention heads. Put it into {folder}"
        )
    heads = read_number(described, HEADS_OPTION, 1, folder)
    control = _CONTROL + ".weight" in source.shapes
    shape = transformer_shape(source, ONE_PASS_EXTRA_TOKENS + control)
    return OnePassPriorConfig(**shape, heads=heads, control=control)


def load_prior(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> PriorStage:
    """The prior. Its embeddings are raw: it has places for statistics and does not use them."""
    config = prior_config(source)
    rules = transformer_rules("noise_in")
    if config.control:
        rules.append(Rule(_CONTROL, "control_in"))
    network = load_network(lambda: OnePassPrior(config), source, rules, device=device, dtype=dtype)
    return PriorStage(network, clip_space(config.dim), ONE_STEP, str(source.path))


def _matches(source: WeightSource) -> bool:
    transformer = has_keys("prd_embedding", "proj_to_clip_embeddings.weight", "embedding_proj.weight")
    return transformer(source) and "time_embedding.linear_1.weight" not in source.shapes


ECLIPSE_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="ECLIPSE prior",
        stage="prior",
        matches=_matches,
        load=load_prior,
        config=prior_config,
        space=lambda source: space_id(prior_config(source).dim),
        licence="CreativeML OpenRAIL++-M",
    ),
)
