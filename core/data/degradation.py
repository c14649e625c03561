"""What an upsampler's low-resolution condition suffers in training, so that it forgives what a decoder makes.

unCLIP, section 2.2: Gaussian blur for the first upsampler, BSR degradation (2103.14006) for the second.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import draw_normal

Degradation = Literal["blur", "bsr"]

BLUR_KERNEL, BLUR_SIGMA = 3, 0.6
MIN_SIGMA = 0.1  # in pixels: no blur that could be seen


def degrade(low: Tensor, kind: Degradation, generator: torch.Generator) -> Tensor:
    """Degrade pictures [B, 3, h, w] in −1..1, all in the same way.

    The blur is the paper's at most: an upsampler that never saw a sharp condition draws halos around edges.
    """
    if kind == "blur":
        strength = torch.rand((), generator=generator, device=generator.device).item()
        return gaussian_blur(low, BLUR_KERNEL, max(strength * BLUR_SIGMA, MIN_SIGMA))
    return _shuffled(low, generator)


def gaussian_blur(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """Separable Gaussian blur of [B, C, H, W] with an odd ``kernel``, edges repeated."""
    offsets = torch.arange(kernel, device=images.device) - kernel // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)  # [C, 1, 1, kernel]
    half = kernel // 2
    channels = images.shape[1]
    images = F.pad(images, (half, half, half, half), mode="replicate")
    images = F.conv2d(images, weights, groups=channels)
    return F.conv2d(images, weights.transpose(2, 3), groups=channels)


def _shuffled(low: Tensor, generator: torch.Generator) -> Tensor:
    """BSR in small: blur, resizing and noise in random order and strength, the same for the whole batch.

    JPEG artefacts are left out: no stage before an upsampler compresses its pictures.
    """
    size = low.shape[-2:]

    def uniform(start: float, end: float) -> float:
        return start + (end - start) * torch.rand((), generator=generator, device=generator.device).item()

    def blur(images: Tensor) -> Tensor:
        return gaussian_blur(images, 7, uniform(0.2, 1.2))

    def resize(images: Tensor) -> Tensor:
        scale = uniform(0.6, 1.2)
        smaller = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
        return F.interpolate(smaller, size=size, mode="bicubic", antialias=True)

    def noise(images: Tensor) -> Tensor:
        grain = draw_normal(images.shape, generator)
        return images + uniform(0, 0.06) * grain

    steps = (blur, resize, noise)
    for index in torch.randperm(len(steps), generator=generator, device=generator.device).tolist():
        low = steps[index](low)
    return low.clamp(-1, 1)
