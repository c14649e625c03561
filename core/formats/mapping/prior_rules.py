"""The names of diffusers' ``PriorTransformer``: the priors of Karlo, Kandinsky and ECLIPSE."""

from __future__ import annotations

import torch

from .keymap import Rule, concatenated, without_batch

TIME_RULES = tuple(Rule(f"time_embedding.linear_{n + 1}", f"time_embed.{2 * n}") for n in range(2))


def transformer_rules(image_in: str) -> list[Rule]:
    """The names of the layers of ``PriorTransformer`` without its timestep, which ECLIPSE's lacks.

    Args:
        image_in: our name for the layer through which the (noised) image embedding enters.
    """
    names = {
        "encoder_hidden_states_proj": "text_in",
        "embedding_proj": "pooled_in",
        "proj_in": image_in,
        "norm_out": "out_norm",
        "proj_to_clip_embeddings": "out",
        "transformer_blocks.{n}.norm1": "blocks.{n}.attention_norm",
        "transformer_blocks.{n}.attn1.to_out.0": "blocks.{n}.attention_out",
        "transformer_blocks.{n}.norm3": "blocks.{n}.mlp_norm",
        "transformer_blocks.{n}.ff.net.0.proj": "blocks.{n}.mlp_in",
        "transformer_blocks.{n}.ff.net.2": "blocks.{n}.mlp_out",
    }
    qkv = tuple(f"transformer_blocks.{{n}}.attn1.to_{part}" for part in "qkv")
    return [
        *(Rule(theirs, ours) for theirs, ours in names.items()),
        Rule(qkv, "blocks.{n}.qkv", concatenated),
        Rule("positional_embedding", "positions", without_batch),
        Rule("prd_embedding", "query", torch.flatten),
        *(Rule(name, None) for name in ("clip_mean", "clip_std")),  # they go into the space
    ]
