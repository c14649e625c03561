"""Recipe: a diffusion upsampler, trained on crops of a quarter of the size it runs at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.losses import min_snr_weights, prediction_target, q_sample, simple_loss
from ..diffusion.low_resolution import corrupt, resize_condition
from ..diffusion.schedule import make_schedule
from ..diffusion.spec import DiffusionSpec
from ..networks.unet import UNet, UNetConfig
from ..stages import UpsamplerStage
from .crops import CropBatches
from .data import DataConfig, load_pictograms
from .degradation import Degradation, degrade
from .loop import LoopConfig
from .parallel import Process

MARGIN = 8  # low-resolution pixels around a crop, for the reach of blur and resizing


@dataclass(frozen=True)
class UpsamplerTraining:
    """Settings of ``unclip train upsampler``.

    Attributes:
        low_size: side of the pictures it starts from.
        degradation: of the condition.
        max_noise_level: noise levels are drawn from 0 to this (Cascaded Diffusion, section 4.2).
    """

    data: DataConfig
    model: UNetConfig
    diffusion: DiffusionSpec
    loop: LoopConfig
    low_size: int
    degradation: Degradation
    max_noise_level: float = 0.4
    min_snr_gamma: float = 5.0
    crops_per_picture: int = 4


class UpsamplerRecipe:
    """Min-SNR weighted denoising loss, conditioned on a degraded and noised low resolution."""

    def __init__(self, config: UpsamplerTraining, process: Process) -> None:
        self.config = config
        size = config.model.image_size
        self.factor = size // config.low_size
        self.network = UNet(config.model).to(memory_format=torch.channels_last)
        self.schedule = make_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)
        self.batches = CropBatches(
            load_pictograms(config.data),
            size,
            crop=size // 4,
            margin=MARGIN * self.factor,
            align=self.factor,
            batch_size=config.loop.batch_size,
            seed=config.loop.seed,
            process=process,
            crops_per_picture=config.crops_per_picture,
        )

    def batch(self, step: int) -> Tensor:
        return self.batches(step)

    def loss(self, network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        config, device = self.config, generator.device
        high = 2 * batch.to(device) - 1  # [B, 3, C + 2M, C + 2M]
        rows = len(high)
        low = F.interpolate(high, scale_factor=1 / self.factor, mode="bicubic", antialias=True).clamp(-1, 1)
        low = degrade(low, config.degradation, generator)
        level = config.max_noise_level * torch.rand(rows, generator=generator, device=device)
        noise = torch.randn(low.shape, generator=generator, device=device)
        concat = self._inner(resize_condition(corrupt(low, level, noise), high.shape[-2:]))

        x0 = self._inner(high)  # [B, 3, C, C]
        t = torch.randint(len(self.schedule), (rows,), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        output = network(q_sample(self.schedule, x0, t, noise), t, concat=concat, noise_level=level)
        target = prediction_target(self.schedule, x0, noise, t, config.diffusion.prediction)
        weights = min_snr_weights(self.schedule, t, config.min_snr_gamma, config.diffusion.prediction)
        return (weights * simple_loss(output, target)).mean()

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ..formats.native import save_stage

        self.network.load_state_dict(state)
        stage = UpsamplerStage(self.network, self.config.low_size, self.config.diffusion)
        name = f"upsampler-{self.config.model.image_size}.safetensors"
        save_stage(stage, folder / name, dtype=torch.float16)

    def _inner(self, images: Tensor) -> Tensor:
        margin = MARGIN * self.factor
        inner = images[..., margin:-margin, margin:-margin]
        return inner.contiguous(memory_format=torch.channels_last)
