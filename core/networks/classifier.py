"""A classifier of small pictures: the residual blocks of torchvision's ResNet-18 under our own forward pass.

Deep Residual Learning (1512.03385), table 1. Group normalisation (1803.08494) in the place of batch
normalisation: a picture's scores do not depend on what else is in its batch, in training neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from .sizes import MAX_LAYERS, MAX_SIZE, require_size

_GROUPS = 32
_LEVELS = 4


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of a classifier.

    Attributes:
        classes: name of each class, all different.
        image_size: side of the pictures that it was trained on.
        blocks: residual blocks of each of the four levels; ResNet-18's by default.
    """

    classes: tuple[str, ...]
    image_size: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        require_size("classifier: image_size", self.image_size, MAX_SIZE)
        if len(self.blocks) != _LEVELS:
            raise ValueError(f"classifier: blocks is {list(self.blocks)}, expected four numbers")
        for count in self.blocks:
            require_size("classifier: blocks", count, MAX_LAYERS)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classifier: classes has {len(self.classes)} names, {len(set(self.classes))} of them "
                f"different; expected two or more, all different"
            )


class Classifier(nn.Module):
    """Pictures → a score for each class."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        whole = ResNet(
            BasicBlock,
            list(config.blocks),
            num_classes=len(config.classes),
            norm_layer=lambda channels: nn.GroupNorm(_GROUPS, channels),
        )
        self.stem = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)
        levels = (whole.layer1, whole.layer2, whole.layer3, whole.layer4)
        self.blocks = nn.ModuleList(block for level in levels for block in level)
        self.head = whole.fc

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] in −1..1 → logits [B, classes]."""
        x = self.stem(x)  # [B, 64, S/4, S/4]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(-2, -1)))  # [B, 512, S/32, S/32] → [B, classes]

    def score(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1, squares of any size → logits [B, classes] in float32."""
        parameter = next(self.parameters())
        x = pictures.to(parameter.device).float()
        size = (self.config.image_size,) * 2
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        x = (2 * x - 1).to(parameter.dtype).contiguous(memory_format=torch.channels_last)
        return self(x).float()
