"""Image embeddings from which a small picture can be painted: what a contrastive loss alone lets go."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import POSITIVE, Range, require_ranges
from ..networks.clip import ClipNetwork
from ..networks.conditioning import GridLayout

# Of the output: Muon moves weights by equal steps, too small ones to come soon to values of about one.
_GAIN = 4.0


@dataclass(frozen=True)
class ReconstructionConfig:
    """What of its picture an embedding must tell, beside what captions say of it.

    Attributes:
        weight: of the mean squared error (pictures in −1..1) beside the contrastive loss.
        side: of the small pictures, in pixels.
    """

    weight: float = 1.0
    side: int = 16

    def __post_init__(self) -> None:
        require_ranges(self, "reconstruction", weight=POSITIVE, side=Range(1))


class ReconstructingClip(nn.Module):
    """A CLIP network, and one that paints small pictures from its image embeddings.

    A contrastive loss asks of an embedding which picture it is, not what it looks like: a decoder then has to
    learn every picture by heart, and a small one that sees each a few dozen times cannot. Where the embedding
    tells in large what is where, most of that is done.
    """

    def __init__(self, clip: ClipNetwork, config: ReconstructionConfig) -> None:
        super().__init__()
        self.clip, self.config, dim = clip, config, clip.config.embed_dim
        self.scale = dim**0.5  # of unit embeddings, to values of about one
        self.painter = GridLayout(dim, 3, config.side, blocks=1)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What ``ClipNetwork`` gives, and the weighted mean squared error of the small pictures.

        Args:
            images: [B, 3, S, S] in 0..1.
            ids: [N, L] token ids.
        """
        image, text, scale = self.clip(images, ids)
        painted = _GAIN * self.painter(self.scale * image).float()  # [N, 3, side, side]
        seen = 2 * F.adaptive_avg_pool2d(images.float(), self.config.side) - 1
        return image, text, scale, self.config.weight * F.mse_loss(painted, seen)
