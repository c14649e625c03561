"""Kandinsky 2.1 and 2.2: diffusers' networks, in miniature with random weights and at their real size."""

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
    context_dim = CONTEXT_DIM if kind.startswith("2.2") else dim
    return randomised(_unet(kind, (64, 128), 16, 1, context_dim, dim, text_dim), seed)


def published_unet(kind: str, levels: int = 4) -> UNet2DConditionModel:
    """The same as published; built under ``torch.device("meta")`` it takes no memory.

    ``levels`` keeps so many of its four, the finest first.
    """
    dim = 1280 if kind.startswith("2.2") else 768
    return _unet(kind, (384, 768, 1152, 1536)[:levels], 64, 3, 768, dim, 1024)


def published_movq() -> VQModel:
    """The autoencoder as published."""
    return VQModel(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        block_out_channels=(128, 256, 256, 512),
        layers_per_block=2,
        num_vq_embeddings=16384,
        vq_embed_dim=4,
        norm_type="spatial",
    )


def _unet(
    kind: str,
    widths: tuple[int, ...],
    size: int,
    blocks: int,
    context_dim: int,
    dim: int,
    text_dim: int,
) -> UNet2DConditionModel:
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
    attended = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels={"": 4, "depth": 8, "inpaint": 9}[use],
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * attended),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * attended, "ResnetUpsampleBlock2D"),
        block_out_channels=widths,
        layers_per_block=blocks,
        cross_attention_dim=context_dim,
        attention_head_dim=HEAD_DIM,
        resnet_time_scale_shift="scale_shift",
        **conditions,
    )
