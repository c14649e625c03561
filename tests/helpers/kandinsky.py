"""Kandinsky 2.1 and 2.2 in miniature: diffusers' networks with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel, VQModel

from .unet import randomised

CONTEXT_DIM, HEAD_DIM = 40, 64


def tiny_movq(seed: int = 20, **changes: Any) -> VQModel:
    """Pictures of twice the latent's size, as two levels make them."""
    options = {
        "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "num_vq_embeddings": 12,
        "vq_embed_dim": 4,
        "norm_type": "spatial",
    }
    return randomised(VQModel(**options | changes), seed)


def deep_movq(seed: int = 20) -> VQModel:
    """Of Kandinsky's depth: four levels, so that pictures are eight times as large as latents.

    Its norms have gains near 1, as trained ones have: random ones make rounding a hundred times as large.
    """
    network = tiny_movq(
        seed,
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "conv_y.weight" in name:
                parameter.mul_(0.3)
            elif "conv_y.bias" in name:
                parameter.add_(1)
    return network


def tiny_unet(kind: str, seed: int = 21, dim: int = 32, text_dim: int = 48) -> UNet2DConditionModel:
    """One of Kandinsky's decoders: of 2.2 (alone, depth, inpaint) or 2.1 (alone, inpaint)."""
    version, _, use = kind.partition(" ")
    conditions: dict[str, Any] = {
        "encoder_hid_dim": dim,
        "encoder_hid_dim_type": "image_proj",
        "addition_embed_type": "image_hint" if use == "depth" else "image",
    }
    if version == "2.1":
        conditions = {
            "encoder_hid_dim": text_dim,
            "encoder_hid_dim_type": "text_image_proj",
            "addition_embed_type": "text_image",
        }
    network = UNet2DConditionModel(
        sample_size=16,
        in_channels={"": 4, "depth": 8, "inpaint": 9}[use],
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=CONTEXT_DIM if version == "2.2" else dim,
        attention_head_dim=HEAD_DIM,
        resnet_time_scale_shift="scale_shift",
        **conditions,
    )
    return randomised(network, seed)
