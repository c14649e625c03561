"""Recipe: a diffusion upsampler, trained on crops of a quarter of the size it runs at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import POSITIVE, SHARE, require_ranges
from ...data.batches import Batch, in_unit_range
from ...data.crops import CropBatches
from ...data.degradation import Degradation, degrade
from ...data.draws import draw_integers, draw_normal, draw_uniform
from ...data.opening import open_crops
from ...data.process import Process
from ...data.settings import DataConfig
from ...diffusion.losses import q_sample
from ...diffusion.low_resolution import corrupt, resize_condition
from ...diffusion.schedule import schedule_of
from ...diffusion.spec import DiffusionSpec
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...stages import UpsamplerConditions, UpsamplerStage
from ..objective import denoising_loss, require_outputs
from ..recipe import Recipe
from ..settings import LoopConfig

MARGIN = 8  # low-resolution pixels around a crop, for the reach of blur and resizing


@dataclass(frozen=True)
class UpsamplerTraining:
    """Settings of ``unclip train upsampler``.

    Attributes:
        low_size: side of the pictures it starts from.
        degradation: of the condition.
        max_noise_level: noise levels are drawn from 0 to this (Cascaded Diffusion, section 4.2); 0 for none.
        noise_level: the one that sampling takes by default, see ``UpsamplerConditions``.
        min_snr_gamma: of the min-SNR loss weights (2303.09556); None weighs all timesteps alike.
        crops_per_picture: crops that share one rendered picture; divides the batch size.
    """

    data: DataConfig
    model: UNetConfig
    diffusion: DiffusionSpec
    loop: LoopConfig
    low_size: int
    degradation: Degradation
    max_noise_level: float = 0.4
    noise_level: float = 0.0
    min_snr_gamma: float | None = None
    crops_per_picture: int = 4

    def __post_init__(self) -> None:
        require_ranges(
            self,
            low_size=POSITIVE,
            crops_per_picture=POSITIVE,
            max_noise_level=SHARE,
            min_snr_gamma=POSITIVE,
        )


class UpsamplerRecipe(Recipe):
    """Denoising loss, conditioned on a degraded and noised low resolution."""

    def __init__(self, config: UpsamplerTraining, process: Process) -> None:
        _require_valid(config)
        self.config = config
        self.factor = config.model.image_size // config.low_size
        self.stage_network = self.network = UNet(config.model).to(memory_format=torch.channels_last)
        self.schedule = schedule_of(config.diffusion)
        self._process = process
        self.batches = self._crops()

    def held_out(self) -> Callable[[int], Batch]:
        return self._crops(held_out=True)

    def _crops(self, held_out: bool = False) -> CropBatches:
        config = self.config
        size = config.model.image_size
        return open_crops(
            config.data,
            size,
            crop=size // 4,
            margin=MARGIN * self.factor,
            align=self.factor,
            batch_size=config.loop.batch_size,
            seed=config.loop.seed,
            process=self._process,
            crops_per_picture=config.crops_per_picture,
            held_out=held_out,
        )

    def prepare(self, batch: Batch) -> Tensor:
        return batch.images

    def loss(self, network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        config, device = self.config, generator.device
        high = 2 * in_unit_range(batch.to(device)) - 1  # [B, 3, C + 2M, C + 2M]
        rows = len(high)
        low = F.interpolate(high, scale_factor=1 / self.factor, mode="bicubic", antialias=True).clamp(-1, 1)
        low = degrade(low, config.degradation, generator)
        level = config.max_noise_level * draw_uniform((rows,), generator)
        noise = draw_normal(low.shape, generator)
        concat = self._inner(resize_condition(corrupt(low, level, noise), high.shape[-2:]))

        x0 = self._inner(high)  # [B, 3, C, C]
        t = draw_integers(len(self.schedule), rows, generator)
        noise = draw_normal(x0.shape, generator)
        noise = noise.contiguous(memory_format=torch.channels_last)
        x_t = q_sample(self.schedule, x0, t, noise)
        output = network(x_t, t, concat=concat, noise_level=level)
        losses = denoising_loss(
            self.schedule, config.diffusion, config.min_snr_gamma, output, x0, x_t, noise, t
        )
        return losses.mean()

    def stage(self) -> UpsamplerStage:
        config = self.config
        conditions = UpsamplerConditions(noise_level=config.noise_level)
        return UpsamplerStage(self.network, config.low_size, config.diffusion, recipe=conditions)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        name = f"upsampler-{self.config.model.image_size}.safetensors"
        save_stage(self.stage(), folder / name, dtype=torch.float16)

    def _inner(self, images: Tensor) -> Tensor:
        margin = MARGIN * self.factor
        inner = images[..., margin:-margin, margin:-margin]
        return inner.contiguous(memory_format=torch.channels_last)


def _require_valid(config: UpsamplerTraining) -> None:
    model = config.model
    require_outputs(model, config.diffusion)
    if model.image_size % config.low_size or model.image_size <= config.low_size:
        raise ValueError(
            f"low_size is {config.low_size}, expected a whole fraction of model.image_size {model.image_size}"
        )
    # Training runs on crops of a quarter, whole pixels of both resolutions.
    for name, size, multiple in (
        ("model.image_size", model.image_size, 4 * model.multiple_of),
        ("low_size", config.low_size, 4),
    ):
        if size % multiple:
            raise ValueError(f"{name} is {size}, expected a multiple of {multiple}")
    if model.concat_channels != model.in_channels or model.conditioning is not None or model.attention:
        raise ValueError(
            f"model: an upsampler has concat_channels = {model.in_channels} for the low resolution, no "
            f"attention and no conditioning"
        )
    if not 0 <= config.noise_level <= config.max_noise_level:
        raise ValueError(
            f"noise_level is {config.noise_level}, expected 0 to max_noise_level, {config.max_noise_level}"
        )
    if config.max_noise_level and not model.noise_level:
        raise ValueError(
            f"max_noise_level is {config.max_noise_level}, but the model is not told the noise level: set "
            f"model.noise_level = true, or max_noise_level = 0"
        )
