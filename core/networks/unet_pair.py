"""Two U-Nets that share one sampling process: the second makes only its last step (Karlo's upsampler).

Karlo's `sr_64_256.py`: a diffusion upsampler runs all steps but the last; for t = 0 a copy of it takes over
that was fine-tuned with adversarial and perceptual losses, and adds the detail that few steps leave out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .unet import UNet, UNetCondition
from .unet_config import UNetConfig


@dataclass(frozen=True)
class UNetPairConfig(UNetConfig):
    """Shape of each of the two U-Nets."""


class UNetPair(nn.Module):
    """A U-Net that is another one at t = 0; called as a :class:`UNet`."""

    def __init__(self, config: UNetPairConfig) -> None:
        super().__init__()
        self.config = config
        self.first = UNet(config)
        self.last = UNet(config)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: UNetCondition | None = None,
        *,
        concat: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """One evaluation, see :meth:`UNet.forward`. All rows have the same t.

        Raises:
            ValueError: rows of the last step beside rows of other steps.
        """
        at_last = (t == 0).tolist()
        if any(at_last) != all(at_last):
            raise ValueError(
                f"U-Net pair: found the timesteps {t.tolist()}, expected 0 in all rows or in none"
            )
        network = self.last if all(at_last) else self.first
        return network(x, t, condition, concat=concat, noise_level=noise_level)
