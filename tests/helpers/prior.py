"""A small diffusion prior, captions for it, and the same weights in diffusers' network."""

from __future__ import annotations

import torch
from diffusers import PriorTransformer
from torch import Tensor
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures
from unclip.core.networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.core.stages import PriorStage

# diffusers' network has one width for image, pooled and token features
DIM, LENGTH = 24, 11
CONFIG = DiffusionPriorConfig(dim=DIM, text_dim=DIM, width=64, layers=3, heads=4, text_length=LENGTH)
SPACE = EmbeddingSpace("test/prior", DIM, mean=(0.2,) * DIM, std=tuple(0.5 + 0.01 * i for i in range(DIM)))


def randomise(network: DiffusionPrior, seed: int = 0) -> DiffusionPrior:
    """Random weights everywhere, biases and gains too, large enough for every token to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            value = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + value if "norm" in name and name.endswith("weight") else value)
        network.out.weight.mul_(0.3)  # predictions of about unit variance, as of embeddings
    return network.eval().requires_grad_(False)


def small_prior(seed: int = 0, **diffusion: object) -> PriorStage:
    spec = DiffusionSpec(prediction="x0", **{"clip_x0": 5.0, **diffusion})
    return PriorStage(randomise(DiffusionPrior(CONFIG), seed), SPACE, spec)


def captions(*lengths: int, seed: int = 1, null: bool = True) -> TextFeatures:
    """Random features of captions with these numbers of valid tokens, and of a null caption of two."""
    generator = torch.Generator().manual_seed(seed)

    def features(count: int, valid: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.arange(LENGTH)[None] < torch.tensor(valid)[:, None]
        tokens = torch.randn(count, LENGTH, DIM, generator=generator)
        return tokens, mask, torch.randn(count, DIM, generator=generator)

    empty = TextFeatures(*features(1, (2,)), SPACE)
    return TextFeatures(*features(len(lengths), lengths), SPACE, empty if null else None)


def diffusers_prior(prior: DiffusionPrior) -> PriorTransformer:
    """diffusers' network with the weights of ours."""
    config = prior.config
    theirs = PriorTransformer(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        num_layers=config.layers,
        embedding_dim=config.dim,
        num_embeddings=config.text_length,
    )
    theirs.load_state_dict(to_diffusers(prior))
    return theirs.eval().requires_grad_(False)


def to_diffusers(prior: DiffusionPrior) -> dict[str, Tensor]:
    """State dict of diffusers' `PriorTransformer` (statistics zero and one)."""
    first, _, second = prior.time_embed
    linears = {
        "encoder_hidden_states_proj": prior.text_in,
        "embedding_proj": prior.pooled_in,
        "proj_in": prior.image_in,
        "time_embedding.linear_1": first,
        "time_embedding.linear_2": second,
        "norm_out": prior.out_norm,
        "proj_to_clip_embeddings": prior.out,
    }
    state = {
        "positional_embedding": prior.positions[None],
        "prd_embedding": prior.query[None, None],
        "clip_mean": torch.zeros(1, prior.config.dim),
        "clip_std": torch.ones(1, prior.config.dim),
    }
    for index, block in enumerate(prior.blocks):
        at = f"transformer_blocks.{index}."
        linears |= {
            at + "norm1": block.attention_norm,
            at + "attn1.to_out.0": block.attention_out,
            at + "norm3": block.mlp_norm,
            at + "ff.net.0.proj": block.mlp_in,
            at + "ff.net.2": block.mlp_out,
        }
        for name in ("weight", "bias"):
            for part, value in zip("qkv", getattr(block.qkv, name).chunk(3), strict=True):
                state[f"{at}attn1.to_{part}.{name}"] = value
    for at, layer in linears.items():
        state |= {f"{at}.weight": layer.weight, f"{at}.bias": layer.bias}
    return {name: value.detach() for name, value in state.items()}
