"""Small U-Nets: their one factory, a decoder and an upsampler made by it, and inputs for the decoder."""

from __future__ import annotations

from typing import Any

import torch
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet_config import UNetConfig

from .unet import random_tensor

CLIP_DIM, TEXT_DIM, POOLED_DIM, LENGTH, ROWS = 12, 20, 16, 6, 3
CONDITIONING = ConditioningConfig(
    clip_dim=CLIP_DIM, clip_tokens=2, text_dim=TEXT_DIM, text_pooled_dim=POOLED_DIM, context_dim=24
)


def tiny_unet(
    image_size: int = 16, *, channel_mult: tuple[int, ...] = (1, 2), blocks: int = 1, **settings: Any
) -> UNetConfig:
    """The smallest U-Net that has levels, and whatever is asked of it besides.

    Args:
        blocks: ``res_blocks`` of every level.
        settings: of ``UNetConfig``; 32 channels and heads of 16 unless they are named.
    """
    settings = {"channels": 32, "head_dim": 16, **settings}
    return UNetConfig(
        image_size, channel_mult=channel_mult, res_blocks=(blocks,) * len(channel_mult), **settings
    )


DECODER = tiny_unet(attention=(8,), conditioning=CONDITIONING)
# As mini's upsamplers.
UPSAMPLER = tiny_unet(64, concat_channels=3, patch_size=4, resample_in_block=False, noise_level=True)
X, T = random_tensor(0, ROWS, 3, 16, 16), torch.tensor([0, 400, 999])
Z_I = random_tensor(1, ROWS, CLIP_DIM)
TOKENS, POOLED = random_tensor(2, ROWS, LENGTH, TEXT_DIM), random_tensor(3, ROWS, POOLED_DIM)
MASK = torch.arange(LENGTH) < torch.tensor([[2], [6], [3]])
TEXT = {"text_tokens": TOKENS, "text_mask": MASK, "text_pooled": POOLED}
