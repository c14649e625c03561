"""A small autoregressive prior with random weights, for the captions of ``helpers_prior``."""

from __future__ import annotations

import torch
from unclip.core.networks.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from unclip.core.stages import PriorStage

from .bundle import fit_codebook
from .prior import DIM, LENGTH, SPACE

COMPONENTS, BUCKETS = 6, 16
CONFIG = AutoregressivePriorConfig(
    dim=DIM,
    text_dim=DIM,
    components=COMPONENTS,
    buckets=BUCKETS,
    match_buckets=4,
    width=32,
    layers=2,
    heads=4,
    text_length=LENGTH,
    text_codes=True,
)


def small_ar_prior(seed: int = 0, config: AutoregressivePriorConfig = CONFIG) -> PriorStage:
    """Weights large enough for every token to matter, and a codec fitted to noise."""
    generator = torch.Generator().manual_seed(seed)
    network = AutoregressivePrior(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            value = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(1 + value if "norm" in name and name.endswith("weight") else value)
    fit_codebook(network, SPACE, generator)
    return PriorStage(network.eval().requires_grad_(False), SPACE, None)
