"""The published networks at their real size, as diffusers and transformers build them.

Build them under ``torch.device("meta")``, or they take their whole memory. The benchmarks use them too.
"""

from __future__ import annotations

from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPVisionConfig
from unclip.core.networks.unet_config import UNetConfig

from .karlo import UnCLIPTextProjModel
from .unet import KARLO_DECODER

CROSS = {"down": "SimpleCrossAttnDownBlock2D", "up": "SimpleCrossAttnUpBlock2D"}
PLAIN = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}

# --- U-Nets of any size ---


def conditional_diffusers_unet(config: UNetConfig) -> UNet2DConditionModel:
    """With FiLM, and attention that context joins."""
    down = tuple((CROSS if grid in config.attention else PLAIN)["down"] for grid in config.grids)
    up = tuple((CROSS if grid in config.attention else PLAIN)["up"] for grid in reversed(config.grids))
    return UNet2DConditionModel(
        sample_size=config.image_size,
        in_channels=config.in_channels + config.concat_channels,
        out_channels=config.out_channels,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=up,
        only_cross_attention=False,
        block_out_channels=tuple(config.channels * factor for factor in config.channel_mult),
        layers_per_block=config.res_blocks[0],
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )


def plain_diffusers_unet(config: UNetConfig) -> UNet2DModel:
    """Without context."""
    levels = len(config.channel_mult)
    if config.resample_in_block:
        down, up = (PLAIN["down"],) * levels, (PLAIN["up"],) * levels
    else:
        attended = [grid in config.attention for grid in config.grids]
        down = tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attended)
        up = tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended))
    return UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.in_channels + config.concat_channels,
        out_channels=config.out_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=tuple(config.channels * factor for factor in config.channel_mult),
        layers_per_block=config.res_blocks[0],
        add_attention=bool(config.attention),
        attention_head_dim=config.head_dim,
        resnet_time_scale_shift="scale_shift" if config.film else "default",
    )


# --- what else belongs to them ---


def karlo_text_projection() -> nn.Module:
    config = KARLO_DECODER
    return UnCLIPTextProjModel(
        clip_extra_context_tokens=config.conditioning.clip_tokens,
        clip_embeddings_dim=config.conditioning.clip_dim,
        time_embed_dim=config.embedding_dim,
        cross_attention_dim=config.context_dim,
    )


def eclipse_prior() -> nn.Module:
    """ECLIPSE's one-pass prior: it knows no time."""
    prior = PriorTransformer(
        num_attention_heads=16, attention_head_dim=32, num_layers=10, additional_embeddings=3
    )
    del prior.time_embedding
    return prior


# --- CLIP: OpenAI's ViT-L/14 and OpenCLIP's ViT-bigG/14 ---

TEXT_L = CLIPTextConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
)
TEXT_BIGG = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)
VISION_L = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=768,
)
VISION_BIGG = CLIPVisionConfig(
    hidden_size=1664,
    intermediate_size=8192,
    num_hidden_layers=48,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=1280,
    hidden_act="gelu",
)
