"""DALLE2-pytorch's prior: its tensors by upstream's names; a small one, random but the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures

DIM, DEPTH, HEADS, HEAD_DIM, LENGTH, TIMESTEPS, MULT = 24, 2, 3, 40, 40, 50, 2
Shapes = dict[str, tuple[int, ...]]
SPACE = EmbeddingSpace("clip-24", DIM, norm="unit")
NETWORK = {  # arguments of upstream's `DiffusionPriorNetwork`
    "dim": DIM,
    "depth": DEPTH,
    "heads": HEADS,
    "dim_head": HEAD_DIM,
    "max_text_len": LENGTH,
    "num_timesteps": TIMESTEPS,
    "ff_mult": MULT,
    "normformer": True,
    "rotary_emb": True,
}
# Those of LAION's `prior_config.json`.
LAION = {
    **NETWORK,
    "dim": 768,
    "depth": 12,
    "heads": 12,
    "dim_head": 64,
    "max_text_len": 77,
    "num_timesteps": 1000,
    "ff_mult": 4,
}


def shapes(network: Mapping[str, int], norm_in: bool = False, normformer: bool = True) -> Shapes:
    """Names and shapes of a ``DiffusionPriorNetwork``'s tensors; those of the rotations are repeated."""
    dim, heads, head_dim = network["dim"], network["heads"], network["dim_head"]
    hidden = network["ff_mult"] * dim
    found: Shapes = {
        "learned_query": (dim,),
        "null_text_encodings": (1, network["max_text_len"], dim),
        "null_text_embeds": (1, 1, dim),
        "null_image_embed": (1, dim),
        "to_time_embeds.0.weight": (network["num_timesteps"], dim),
        "causal_transformer.rel_pos_bias.relative_attention_bias.weight": (32, heads),
        "causal_transformer.norm.g": (dim,),
        "causal_transformer.project_out.weight": (dim, dim),
    }
    if norm_in:
        found["causal_transformer.init_norm.g"] = (dim,)
    for layer in range(network["depth"]):
        names = {
            "0.null_kv": (2, head_dim),
            "0.norm.g": (dim,),
            "0.to_q.weight": (heads * head_dim, dim),
            "0.to_kv.weight": (2 * head_dim, dim),
            "0.rotary_emb.freqs": (16,),
            "0.to_out.0.weight": (dim, heads * head_dim),
            "0.to_out.1.g": (dim,),
            "1.0.g": (dim,),
            "1.1.weight": (2 * hidden, dim),
            "1.5.weight": (dim, hidden),
        }
        if normformer:
            names["1.3.g"] = (hidden,)
        found |= {f"causal_transformer.layers.{layer}.{name}": shape for name, shape in names.items()}
    return found


def dalle2_state(seed: int = 0, network: Mapping[str, int] = NETWORK, **options: bool) -> dict[str, Tensor]:
    """Random weights, in the order of their names; everything is large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted(shapes(network, **options).items()):
        value = torch.randn(shape, generator=generator)
        if name.endswith(".g"):
            value = 1 + 0.3 * value
        elif name.endswith("freqs"):
            value = 10000.0 ** (-torch.arange(0, 32, 2) / 32)
        elif len(shape) == 2 and not name.endswith(("null_kv", "null_image_embed")):
            value = value / math.sqrt(shape[1]) * (3 if "bias" in name else 1)
        state[name] = value
    return state


def early_state(seed: int = 0, network: Mapping[str, int] = NETWORK, **options: bool) -> dict[str, Tensor]:
    """The same as versions before 1.9.0 of the package have it: one learned padding, and no other null."""
    state = dalle2_state(seed, network, **options)
    state["null_text_embed"] = state.pop("null_text_encodings")
    del state["null_text_embeds"], state["null_image_embed"]
    return state


def captions(*lengths: int, seed: int = 1) -> TextFeatures:
    """Random features of captions with these numbers of valid tokens; z_t is not of unit length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths), LENGTH, DIM, generator=generator)
    pooled = torch.randn(len(lengths), DIM, generator=generator)
    mask = torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]
    return TextFeatures(tokens, mask, pooled, EmbeddingSpace("clip-24", DIM))
