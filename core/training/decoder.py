"""Recipe: a decoder, CLIP image embeddings and captions to pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.losses import min_snr_weights, prediction_target, q_sample, simple_loss
from ..diffusion.schedule import make_schedule
from ..diffusion.spec import DiffusionSpec
from ..networks.unet import UNet, UNetConfig
from ..stages import DecoderStage
from .data import DataConfig, PictogramBatches, load_pictograms
from .frozen_clip import load_frozen_clip
from .loop import LoopConfig
from .parallel import Process


@dataclass(frozen=True)
class DecoderTraining:
    """Settings of ``unclip train decoder``.

    Attributes:
        clip: file of the trained CLIP stage, which stays frozen.
        drop_clip, drop_text: share of rows that lose z_i and the caption (paper: 10% and 50%).
        min_snr_gamma: of the min-SNR loss weights (2303.09556).
    """

    clip: str
    data: DataConfig
    model: UNetConfig
    diffusion: DiffusionSpec
    loop: LoopConfig
    drop_clip: float = 0.1
    drop_text: float = 0.5
    min_snr_gamma: float = 5.0


class ConditionedUNet(nn.Module):
    """A U-Net together with its conditioning, as one module to compile and wrap."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        return self.unet(x, t, self.unet.condition(**conditions))


class DecoderRecipe:
    """Min-SNR weighted denoising loss with classifier-free dropping of both conditions."""

    def __init__(self, config: DecoderTraining, process: Process) -> None:
        self.config = config
        self.clip = load_frozen_clip(Path(config.clip))
        self.unet = UNet(config.model).to(memory_format=torch.channels_last)
        self.network = ConditionedUNet(self.unet)
        self.schedule = make_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)
        self.batches = PictogramBatches(
            load_pictograms(config.data),
            config.model.image_size,
            config.loop.batch_size,
            config.loop.seed,
            process,
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        batch = self.batches(step)
        return batch.images, self.clip.tokenizer(batch.captions)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        config, device = self.config, generator.device
        images, ids = (tensor.to(device) for tensor in batch)
        rows = len(images)
        z_i, (tokens, mask, _) = self.clip.encode_images(images), self.clip.encode_tokens(ids)
        x0 = (2 * images - 1).contiguous(memory_format=torch.channels_last)  # [B, 3, S, S]
        t = torch.randint(len(self.schedule), (rows,), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        keep_clip = torch.rand(rows, generator=generator, device=device) >= config.drop_clip
        keep_text = torch.rand(rows, generator=generator, device=device) >= config.drop_text
        output = network(
            q_sample(self.schedule, x0, t, noise),
            t,
            clip_embedding=self.clip.space.standardise(z_i),
            keep_clip=keep_clip,
            text_tokens=tokens,
            text_mask=mask & keep_text[:, None],
        )
        target = prediction_target(self.schedule, x0, noise, t, config.diffusion.prediction)
        weights = min_snr_weights(self.schedule, t, config.min_snr_gamma, config.diffusion.prediction)
        return (weights * simple_loss(output, target)).mean()

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ..formats.native import save_stage

        self.network.load_state_dict(state)
        stage = DecoderStage(self.unet, self.clip.space, self.config.diffusion)
        save_stage(stage, folder / "decoder.safetensors", dtype=torch.float16)
