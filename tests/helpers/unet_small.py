"""Two small U-Nets, a decoder and an upsampler, and inputs for the decoder."""

from __future__ import annotations

import torch
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet_config import UNetConfig

from .unet import random_tensor

CLIP_DIM, TEXT_DIM, POOLED_DIM, LENGTH, ROWS = 12, 20, 16, 6, 3
CONDITIONING = ConditioningConfig(
    clip_dim=CLIP_DIM, clip_tokens=2, text_dim=TEXT_DIM, text_pooled_dim=POOLED_DIM, context_dim=24
)
DECODER = UNetConfig(
    image_size=16,
    channels=32,
    channel_mult=(1, 2),
    res_blocks=(1, 1),
    attention=(8,),
    head_dim=16,
    conditioning=CONDITIONING,
)
# As mini's upsamplers.
UPSAMPLER = UNetConfig(
    image_size=64,
    concat_channels=3,
    patch_size=4,
    channels=32,
    channel_mult=(1, 2),
    res_blocks=(1, 1),
    resample_in_block=False,
    noise_level=True,
)
X, T = random_tensor(0, ROWS, 3, 16, 16), torch.tensor([0, 400, 999])
Z_I = random_tensor(1, ROWS, CLIP_DIM)
TOKENS, POOLED = random_tensor(2, ROWS, LENGTH, TEXT_DIM), random_tensor(3, ROWS, POOLED_DIM)
MASK = torch.arange(LENGTH) < torch.tensor([[2], [6], [3]])
TEXT = {"text_tokens": TOKENS, "text_mask": MASK, "text_pooled": POOLED}
