"""U-Nets of the published models as configs, at their real size, and random weights for small ones."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet_config import UNetConfig

# unCLIP (2204.06125), table 3.
PAPER_DECODER = UNetConfig(
    image_size=64,
    out_channels=6,
    channels=512,
    channel_mult=(1, 2, 3, 4),
    res_blocks=(3, 3, 3, 3),
    attention=(32, 16, 8),
    conditioning=ConditioningConfig(
        clip_dim=1024, clip_tokens=4, text_dim=2048, text_pooled_dim=2048, context_dim=2048
    ),
)
PAPER_UPSAMPLER_256 = UNetConfig(
    image_size=256, concat_channels=3, channels=320, channel_mult=(1, 2, 3, 4), res_blocks=(3, 3, 3, 3)
)
PAPER_UPSAMPLER_1024 = UNetConfig(
    image_size=1024,
    concat_channels=3,
    channels=192,
    channel_mult=(1, 1, 2, 2, 4, 4),
    res_blocks=(2, 2, 2, 2, 2, 2),
)

# kakaobrain/karlo: `configs/decoder_900M_vit_l.yaml` and `models/sr_64_256.py`.
KARLO_DECODER = UNetConfig(
    image_size=64,
    out_channels=6,
    channels=320,
    channel_mult=(1, 2, 3, 4),
    res_blocks=(3, 3, 3, 3),
    attention=(32, 16, 8),
    conditioning=ConditioningConfig(
        clip_dim=768,
        clip_tokens=4,
        text_dim=768,
        text_pooled_dim=768,
        context_dim=1536,
        null_text="empty_caption",
    ),
)
KARLO_UPSAMPLER = replace(PAPER_UPSAMPLER_256, film=False)

# openai/glide-text2im: `model_creation.py`.
GLIDE_BASE = UNetConfig(
    image_size=64,
    out_channels=6,
    channels=192,
    channel_mult=(1, 2, 3, 4),
    res_blocks=(3, 3, 3, 3),
    attention=(32, 16, 8),
    conditioning=ConditioningConfig(text_dim=512, text_pooled_dim=512, context_dim=512, project_text=False),
)
GLIDE_UPSAMPLER = replace(
    GLIDE_BASE,
    image_size=256,
    concat_channels=3,
    channel_mult=(1, 1, 2, 2, 4, 4),
    res_blocks=(2, 2, 2, 2, 2, 2),
)
GLIDE_INPAINT = replace(GLIDE_BASE, concat_channels=4)
GLIDE_UPSAMPLER_INPAINT = replace(GLIDE_UPSAMPLER, concat_channels=7)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, of a size that keeps activations about one; layers start at zero otherwise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return network.eval()


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a - b).abs().max().item()
