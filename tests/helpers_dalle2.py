"""A small prior of DALLE2-pytorch: its weights by upstream's names, random but the same everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures

DIM, DEPTH, HEADS, HEAD_DIM, LENGTH, TIMESTEPS, MULT = 24, 2, 3, 40, 40, 50, 2
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


def shapes(norm_in: bool = False, normformer: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ``DiffusionPriorNetwork``'s tensors; those of the rotations are repeated."""
    found: dict[str, tuple[int, ...]] = {
        "learned_query": (DIM,),
        "null_text_encodings": (1, LENGTH, DIM),
        "null_text_embeds": (1, 1, DIM),
        "null_image_embed": (1, DIM),
        "to_time_embeds.0.weight": (TIMESTEPS, DIM),
        "causal_transformer.rel_pos_bias.relative_attention_bias.weight": (32, HEADS),
        "causal_transformer.norm.g": (DIM,),
        "causal_transformer.project_out.weight": (DIM, DIM),
    }
    if norm_in:
        found["causal_transformer.init_norm.g"] = (DIM,)
    for layer in range(DEPTH):
        names = {
            "0.null_kv": (2, HEAD_DIM),
            "0.norm.g": (DIM,),
            "0.to_q.weight": (HEADS * HEAD_DIM, DIM),
            "0.to_kv.weight": (2 * HEAD_DIM, DIM),
            "0.rotary_emb.freqs": (16,),
            "0.to_out.0.weight": (DIM, HEADS * HEAD_DIM),
            "0.to_out.1.g": (DIM,),
            "1.0.g": (DIM,),
            "1.1.weight": (2 * MULT * DIM, DIM),
            "1.5.weight": (DIM, MULT * DIM),
        }
        if normformer:
            names["1.3.g"] = (MULT * DIM,)
        found |= {f"causal_transformer.layers.{layer}.{name}": shape for name, shape in names.items()}
    return found


def dalle2_state(seed: int = 0, **options: bool) -> dict[str, Tensor]:
    """Random weights, in the order of their names; everything is large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted(shapes(**options).items()):
        value = torch.randn(shape, generator=generator)
        if name.endswith(".g"):
            value = 1 + 0.3 * value
        elif name.endswith("freqs"):
            value = 10000.0 ** (-torch.arange(0, 32, 2) / 32)
        elif len(shape) == 2 and not name.endswith(("null_kv", "null_image_embed")):
            value = value / math.sqrt(shape[1]) * (3 if "bias" in name else 1)
        state[name] = value
    return state


def captions(*lengths: int, seed: int = 1) -> TextFeatures:
    """Random features of captions with these numbers of valid tokens; z_t is not of unit length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths), LENGTH, DIM, generator=generator)
    pooled = torch.randn(len(lengths), DIM, generator=generator)
    mask = torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]
    return TextFeatures(tokens, mask, pooled, EmbeddingSpace("clip-24", DIM))
